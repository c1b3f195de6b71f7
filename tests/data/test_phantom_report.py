from hf_mu2.data.phantom_report import Finding, write_report


def test_the_same_seed_writes_the_same_report():
    findings = [Finding("Lung nodule", "right", "upper lobe", 1, 8.0, None, "solid")]
    assert write_report(findings, 3) == write_report(findings, 3)
    assert write_report(findings, 3) != write_report(findings, 4)
