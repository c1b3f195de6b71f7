import numpy as np
import pytest

from hf_mu2.data.embeddings import Embeddings, check_comparable, read_embedding_table, read_embeddings


def test_embeddings_are_joined_by_study(tmp_path):
    np.savez(tmp_path / "e.npz", study_id=np.array(["s1", "s0"]), embedding=np.array([[1.0, 0], [0, 2.0]]))
    np.testing.assert_array_equal(read_embeddings(tmp_path / "e.npz", ["s0", "s1"]), [[0, 2], [1, 0]])
    with pytest.raises(ValueError, match=r"1 of 2 have none in `e\.npz`, e\.g\. `s7`"):
        read_embeddings(tmp_path / "e.npz", ["s0", "s7"])
    with pytest.raises(ValueError, match="hf-mu2 embed"):
        read_embeddings(tmp_path / "e.csv", ["s0"])


def test_parquet_embeddings_are_read_as_npz_are(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table({"study_id": ["s1", "s0"], "embedding": [[1.0, 0.0], [0.0, 2.0]]})
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    np.testing.assert_array_equal(read_embeddings(tmp_path / "e.parquet", ["s0", "s1"]), [[0, 2], [1, 0]])


def test_a_table_says_what_made_it(tmp_path):
    made = {"layer": "tower", "model_digest": "a1", "notice": "no"}
    np.savez(tmp_path / "e.npz", study_id=np.array(["s1"]), embedding=np.ones((1, 2)), **made)
    table = read_embedding_table(tmp_path / "e.npz")
    assert table.study_ids == ["s1"] and table.made_with == {"layer": "tower", "model_digest": "a1"}


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_damaged_and_foreign_files_are_named(tmp_path, ending):
    path = tmp_path / f"e.{ending}"
    path.write_bytes(b"no table at all")
    with pytest.raises(ValueError, match=rf"`e\.{ending}` has not or is damaged"):
        read_embedding_table(path)


def test_a_file_without_the_columns_or_without_studies_is_refused(tmp_path):
    np.savez(tmp_path / "e.npz", study_id=np.array(["s1"]))
    with pytest.raises(ValueError, match="columns `study_id` and `embedding`"):
        read_embedding_table(tmp_path / "e.npz")
    np.savez(tmp_path / "e.npz", study_id=np.array([]), embedding=np.zeros((0, 0)))
    with pytest.raises(ValueError, match="at least one study"):
        read_embedding_table(tmp_path / "e.npz")


def test_vectors_of_another_layer_checkpoint_or_width_do_not_compare():
    def table(width: int, **made_with: str) -> Embeddings:
        return Embeddings(["s"], np.zeros((1, width)), made_with)

    check_comparable(table(3, layer="tower"), table(3, layer="tower", model_digest="a"))
    for other, what in (
        (table(3, layer="soft_prompts"), "layer `tower` and `soft_prompts`"),
        (table(3, model_digest="b"), "model_digest `a` and `b`"),
        (table(4), "width 3 and 4"),
    ):
        with pytest.raises(ValueError, match=what):
            check_comparable(table(3, layer="tower", model_digest="a"), other)
