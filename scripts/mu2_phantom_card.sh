#!/bin/sh
# Measure the embedded checkpoint on PhantomCT and write its card: sh scripts/mu2_phantom_card.sh WORK_DIR
set -e
WORK=$1
CARD=$(mktemp)
python - "$WORK" <<'PYTHON'
import json, sys
from pathlib import Path
from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.phantom.benchmark import write_benchmark

work = Path(sys.argv[1])
write_benchmark(work / "phantoms", {"validation": 200, "test": 200}, resolution="coarse", num_workers=2)
# The first 400 studies the checkpoint was trained on; a report is the same at every spacing.
rows = [{"study_id": f"phantom_{n:06d}", "reference": make_phantom(n, spacing=(20, 20, 20)).report.text} for n in range(400)]
(work / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
PYTHON
for SPLIT in validation test; do
    hf-mu2 confidence collect "$WORK/phantoms" --split $SPLIT --references "$WORK/phantoms/$SPLIT/metadata.jsonl" \
        --out "$WORK/$SPLIT.jsonl"
done
hf-mu2 confidence fit "$WORK/validation.jsonl" --out "$WORK/confidence.json"
hf-mu2 confidence measure "$WORK/test.jsonl" --calibration "$WORK/confidence.json" --out "$WORK/confidence"
# The rows of `confidence collect` hold the greedy report as `candidate`, as those of `predict` do.
hf-mu2 evaluate "$WORK/test.jsonl" --references "$WORK/phantoms/test/metadata.jsonl" \
    --training-references "$WORK/train.jsonl" --out "$WORK/evaluation"
hf-mu2 image-dependence "$WORK/phantoms" --split test --limit 64 --out "$WORK/dependence.json"
cat > "$CARD" <<'TEXT'
It shows that the whole path from a CT volume to a report works; what it says of a real CT means nothing. Trained from nothing by
`scripts/train_mu2_phantom.py` on 2,400 synthetic studies: first the vision tower, to name the findings of every patch, then the mu2
tokenizer and the language model, to write the report, then the whole.
TEXT
hf-mu2 publish model-card mu2-phantom hf-mu2/mu2-phantom --licence apache-2.0 --corpus phantom_ct --description "$CARD" \
    --evaluation "PhantomCT, 200 test studies=$WORK/evaluation/evaluation.json" \
    --dependence "$WORK/dependence.json" --confidence "$WORK/confidence/confidence_measured.json"
cp "$WORK/confidence.json" "$(python -c 'import hf_mu2; print(hf_mu2.embedded_checkpoint())')"
