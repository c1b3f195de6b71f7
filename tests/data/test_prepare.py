"""Preparing volumes: what comes out trains, resumes after any kill with equal bytes, and never mixes settings."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mu2.data.executors import make_executor, parse_options
from hf_mu2.data.prepare import PreparedStudies, prepare, relocate
from hf_mu2.data.work_list import write_plan
from hf_mu2.files import PARTIAL
from hf_mu2.model.volume_mu2 import load_volume, volume_reference
from tests.data.killed_runs import KilledRuns
from tests.data.volume_rows import small_processor, write_rows
from tests.tiny import make_tiny_checkpoint

pytest.importorskip("datatrove")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    return write_rows(tmp_path_factory.mktemp("volumes"), 5, damaged=(3,))


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory) -> Path:
    return prepare(
        rows, tmp_path_factory.mktemp("out") / "prepared", small_processor(), volumes_per_shard=2
    ).folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but logs and the work list; the manifest without its times."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith(".plan/") or PARTIAL in name:
            continue
        content = path.read_bytes()
        if name == "manifest.json":
            manifest = json.loads(content)
            for facts in manifest["splits"].values():
                del facts["times"]
            content = json.dumps(manifest).encode()
        files[name] = content
    return files


def test_rows_come_out_in_order_with_their_columns_and_the_damaged_one_is_listed(rows, folder):
    studies = PreparedStudies(folder)
    assert [row["study_id"] for row in studies] == ["study_0", "study_1", "study_2", "study_4"]
    assert studies[-1]["completion"] == rows[4]["completion"]
    assert set(studies[0]) == set(rows[0])
    (defect,) = map(json.loads, (folder / "defects" / "train.jsonl").read_text().splitlines())
    assert defect["study_id"] == "study_3" and "complete" in defect["reason"]
    facts = json.loads((folder / "manifest.json").read_text())["splits"]["train"]
    assert facts["rows"] == 4 and facts["rows_left_out"] == 1 and facts["shards"] == 3


def test_every_row_has_its_own_volume(rows, folder):
    processor = small_processor()
    for row in PreparedStudies(folder):
        (source,) = next(raw["images"] for raw in rows if raw["study_id"] == row["study_id"])
        expected, got = (
            processor(image, return_tensors="np")["pixel_values"] for image in (source, row["images"][0])
        )
        np.testing.assert_allclose(got, expected, atol=0.5 / 2000 + 1e-6)


def test_a_data_loader_reads_prepared_studies(folder):
    processor = small_processor()

    def collate(batch):
        return processor([row["images"][0] for row in batch], return_tensors="pt")

    (batch,) = torch.utils.data.DataLoader(PreparedStudies(folder), 4, collate_fn=collate, num_workers=1)
    assert batch["pixel_values"].shape == (4, 2, 8, 32, 32)


def test_load_dataset_opens_the_folder(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    opened = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))["train"]
    assert list(opened) == list(PreparedStudies(folder))


def test_a_dataset_keeps_its_features_even_where_all_values_are_missing(rows, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        study_id=datasets.Value("string"),
        images=datasets.List(datasets.Nifti()),
        grade=datasets.Value("int8"),
    )
    made = [{"study_id": row["study_id"], "images": row["images"], "grade": None} for row in rows[:2]]
    source = datasets.Dataset.from_list(made, features=features)
    out = prepare(source, tmp_path / "out", small_processor(), split="test").folder
    opened = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["test"]
    assert opened.features["grade"] == datasets.Value("int8")
    assert opened.features["images"] == datasets.List(datasets.Value("string"))


def test_a_volume_of_many_rows_is_stored_once(rows, tmp_path):
    asked = [{**rows[0], "question": n} for n in range(3)] + [
        {"images": [rows[1]["images"][0], rows[0]["images"][0]]}
    ]
    done = prepare(asked, tmp_path / "out", small_processor())
    assert (done.num_rows, done.num_volumes) == (4, 2)
    studies = PreparedStudies(tmp_path / "out")
    assert studies[0]["images"][0] == studies[2]["images"][0] == studies[3]["images"][1]


def test_the_bytes_depend_on_neither_the_number_of_workers_nor_on_who_ran_first(rows, folder, tmp_path):
    two = prepare(rows, tmp_path / "two", small_processor(), volumes_per_shard=2, workers=2).folder
    expected, got = snapshot(folder), snapshot(two)
    assert expected.keys() == got.keys()
    for name in expected:
        if name.startswith("shards/"):
            assert got[name] == expected[name], name


def test_a_second_call_makes_nothing_again(rows, tmp_path):
    out = tmp_path / "out"
    prepare(rows, out, small_processor(), volumes_per_shard=2)
    before = {path: path.stat().st_mtime_ns for path in (out / "shards").rglob("*.*")}
    prepare(rows, out, small_processor(), volumes_per_shard=2)
    assert before == {path: path.stat().st_mtime_ns for path in (out / "shards").rglob("*.*")}


@pytest.mark.parametrize(
    "damage", ["cut shard", "no shard", "no statement", "half a statement", "left partial"]
)
def test_an_unfinished_shard_is_recognised_and_made_again(rows, tmp_path, damage):
    out = tmp_path / "out"
    prepare(rows, out, small_processor(), volumes_per_shard=2)
    expected = snapshot(out)
    shard, statement = out / "shards/train/00001.safetensors", out / "shards/train/00001.json"
    if damage == "cut shard":
        os.truncate(shard, shard.stat().st_size // 2)
    elif damage == "no shard":
        shard.unlink()
    elif damage == "no statement":
        statement.unlink()
    elif damage == "half a statement":
        statement.write_bytes(statement.read_bytes()[:40])
    else:
        statement.unlink()
        shard.rename(shard.with_name(f"{PARTIAL}{shard.name}"))
    prepare(rows, out, small_processor(), volumes_per_shard=2)
    assert snapshot(out) == expected
    assert not list((out / "shards").rglob(f"{PARTIAL}*"))


def test_a_source_that_changed_is_prepared_again(tmp_path):
    rows = write_rows(tmp_path / "volumes", 4)
    out = prepare(rows, tmp_path / "out", small_processor(), volumes_per_shard=2).folder
    before = snapshot(out)
    shutil.copy(rows[0]["images"][0], rows[3]["images"][0])
    prepare(rows, out, small_processor(), volumes_per_shard=2)
    after = snapshot(out)
    assert before["shards/train/00000.safetensors"] == after["shards/train/00000.safetensors"]
    assert before["shards/train/00001.safetensors"] != after["shards/train/00001.safetensors"]
    first, *_, last = PreparedStudies(out)
    np.testing.assert_array_equal(load_volume(first["images"][0]).array, load_volume(last["images"][0]).array)


def test_shards_of_volumes_that_are_gone_from_the_rows_are_removed(rows, tmp_path):
    out = prepare(rows, tmp_path / "out", small_processor(), volumes_per_shard=1).folder
    prepare(rows[:2], out, small_processor(), volumes_per_shard=1)
    assert len(list((out / "shards").rglob("*.safetensors"))) == 2


def test_other_settings_are_refused_in_a_folder_that_was_begun(rows, folder):
    with pytest.raises(ValueError, match="was begun with"):
        prepare(rows, folder, small_processor(antialias=False))
    with pytest.raises(ValueError, match="was begun with"):
        prepare(rows, folder, form="preprocessed")


def test_a_moved_folder_is_read_and_relocated(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    images = [row["images"][0] for row in PreparedStudies(elsewhere)]
    assert all(str(elsewhere) in image for image in images)
    load_volume(images[0])
    assert relocate(elsewhere) == 4
    assert images[0] in json.loads((elsewhere / "train.jsonl").read_text().splitlines()[0])["images"]


@pytest.mark.parametrize("form", ["preprocessed", "preprocessed_numpy"])
def test_the_storage_forms_of_the_negative_sampling_paper(rows, tmp_path, form):
    """0.75 x 0.75 x 1.5 mm, +-1000 HU: NIfTI in HU, or numpy (z, x, y) divided by 1000."""
    done = prepare(rows, tmp_path / "out", form=form, volumes_per_shard=2)
    assert list(done.left_out) == ["study_3"]
    (entry,) = PreparedStudies(tmp_path / "out")[0]["images"]
    raw = load_volume(rows[0]["images"][0])  # 12 x 40 x 44 voxels of 3 x 2 x 2 mm
    shape = (24, 107, 117)
    if form == "preprocessed":
        volume = load_volume(entry)
        assert volume.spacing == pytest.approx((1.5, 0.75, 0.75))
        hu = volume.array
        centre = lambda v: (v.affine @ [*[(n - 1) / 2 for n in v.array.shape[::-1]], 1])[:3]  # noqa: E731
        np.testing.assert_allclose(centre(volume), centre(raw), atol=0.01)
    else:
        stored = np.load(entry, mmap_mode="r")
        assert stored.dtype == np.float32 and np.abs(stored).max() <= 1
        hu = 1000 * stored.transpose(0, 2, 1)
    assert hu.shape == shape and hu.min() >= -1000 and hu.max() <= 1000
    # A point well inside: the voxel of the source that holds it has its value to interpolation.
    assert np.median(np.abs(hu[::2, 1::8, 1::8].astype(float))) > 0
    assert abs(hu.mean() - np.clip(raw.array, -1000, 1000).mean()) < 15


def test_rows_are_read_once_and_never_held(tmp_path, rows):
    """Many rows of one volume: what is kept grows with volumes, not with rows."""
    long_text = "x" * 2000
    stream = (
        {"images": rows[0]["images"], "study_id": f"s{i}", "text": long_text + str(i)} for i in range(10_000)
    )
    tracemalloc.start()
    plan = write_plan(stream, tmp_path / "plan", 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (plan.num_rows, plan.num_volumes, plan.num_shards) == (10_000, 1, 1)
    assert peak < 4_000_000  # the rows are 20 MB
    assert sum(1 for _ in plan.rows()) == 10_000


def test_volumes_are_cut_into_shards_that_do_not_overlap(tmp_path):
    made = [{"images": [f"/data/{i}.nii.gz", f"/data/{i + 1}.nii.gz"]} for i in range(10)]
    plan = write_plan(made, tmp_path, 4)
    lines = [plan.shard(number) for number in range(plan.num_shards)]
    assert [len(part) for part in lines] == [4, 4, 3]
    sources = [json.loads(line)["source"] for part in lines for line in part]
    assert sources == [f"/data/{i}.nii.gz" for i in range(11)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"study_id": "a", "image": "x"}, "must have the column `images`"),
        ({"study_id": "a", "images": [np.zeros(3)]}, "must be a path or a volume reference"),
        (
            {"study_id": "a", "images": [{"bytes": b"x", "path": None}]},
            "must be a path or a volume reference",
        ),
        ({"study_id": "a", "images": ['{"key":"k","prepared":"p","volume":"v"}']}, "is prepared already"),
    ],
)
def test_rows_that_cannot_be_prepared_say_so(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        prepare([row], tmp_path / "out", small_processor())


def test_a_form_a_processor_and_a_split_that_are_not_there(tmp_path, rows, folder):
    with pytest.raises(ValueError, match="`form` is one of"):
        prepare(rows, tmp_path, small_processor(), form="zarr")
    with pytest.raises(ValueError, match="for one processor"):
        prepare(rows, tmp_path)
    with pytest.raises(ValueError, match="for one processor"):
        prepare(rows, tmp_path, small_processor(mode="official"))
    with pytest.raises(ValueError, match="one file of rows per split"):
        PreparedStudies(folder, "test")


def test_references_are_resolved_before_the_work_goes_elsewhere(rows, tmp_path, monkeypatch):
    source = Path(rows[0]["images"][0])
    monkeypatch.chdir(source.parent)
    text = volume_reference(source.name, spacing=(3, 2, 2))
    plan = write_plan([{"images": [source.name, text]}], tmp_path, 2)
    plain, corrected = (json.loads(line)["source"] for line in plan.shard(0))
    assert plain == str(source) and json.loads(corrected) == {"path": str(source), "spacing": [3.0, 2.0, 2.0]}


def noop(data, rank, world_size):
    """A task that pickles."""


def test_a_slurm_job_is_submitted_with_the_recipe_and_the_options(tmp_path, monkeypatch, rows):
    from datatrove.executor import slurm

    scripts = []
    monkeypatch.setattr(
        slurm, "launch_slurm_job", lambda script, *_: scripts.append((script, _)) or f"{len(scripts)}"
    )
    options = parse_options(["partition=cpu", "time=04:00:00", "mem_per_cpu_gb=16", "tasks_per_job=1"])
    done = prepare(
        rows, tmp_path / "out", small_processor(),
        volumes_per_shard=2, workers=2, executor="slurm", options=options,
    )  # fmt: skip
    assert not done.is_finished
    array, _, last, *_ = (
        script for script, _ in scripts
    )  # work, its statistics, the last job, its statistics
    for line in ("partition=cpu", "time=04:00:00", "mem-per-cpu=16G", "cpus-per-task=2", "array=0-2%2"):
        assert f"#SBATCH --{line}\n" in array
    assert "launch_pickled_pipeline" in array and "array=0-0" in last
    assert any(
        "--dependency=afterok:1" in argument for argument in scripts[2][1] if isinstance(argument, str)
    )


def test_a_ray_executor_is_built_with_the_recipe_and_the_options(tmp_path):
    built = make_executor(
        [noop], 7, tmp_path, "ray", 3, {"cpus_per_task": 4, "ray_remote_kwargs": {"num_cpus": 4}}
    )
    assert (built.tasks, built.workers, built.cpus_per_task, built.mem_per_cpu_gb) == (7, 3, 4, 8)
    assert built.ray_remote_kwargs == {"num_cpus": 4}


def test_executor_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="`executor` is one of"):
        make_executor([noop], 1, tmp_path, "dask", 1)
    with pytest.raises(ValueError, match="name of a partition"):
        make_executor([noop], 1, tmp_path, "slurm", 1)
    with pytest.raises(ValueError, match="unexpected keyword"):
        make_executor([noop], 1, tmp_path, "local", 1, {"colour": "blue"})
    with pytest.raises(ValueError, match="name=value"):
        parse_options(["time"])
    assert parse_options(["a=3", "b=true", "c=null", "d=04:00:00", "e=x=y"]) == {
        "a": 3, "b": True, "c": None, "d": "04:00:00", "e": "x=y",
    }  # fmt: skip


def big_processor():
    """A grid of 6 MB per volume: writing takes long enough to be hit."""
    return small_processor(spacing=(0.75, 0.5, 0.5), size={"height": 256, "width": 256}, max_frames=6)


def prepare_big(rows: list[dict], out: Path, workers: int) -> None:
    prepare(rows, out, big_processor(), volumes_per_shard=2, workers=workers)


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path):
    rows = write_rows(tmp_path / "volumes", 8, damaged=(3,))
    killed = KilledRuns(prepare_big, rows, tmp_path / "out", workers=1)
    killed.kill(2)
    assert snapshot(killed.finish()) == snapshot(killed.undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(1, 20), (2, 6)])
def test_many_kills_at_random_moments_end_in_the_same_bytes(tmp_path, workers, kills):
    rows = write_rows(tmp_path / "volumes", 8, damaged=(3,))
    killed = KilledRuns(prepare_big, rows, tmp_path / "out", workers)
    writing = killed.kill(kills)
    assert workers > 1 or writing >= kills // 4  # a write takes milliseconds, and two workers share the cores
    out = killed.finish()
    assert snapshot(out) == snapshot(killed.undisturbed)
    assert not list(out.rglob(f"{PARTIAL}*.safetensors"))


@pytest.mark.slow
def test_stock_trl_trains_from_the_folder_alone(tmp_path):
    """The volumes are gone and our package cannot be imported: the checkpoint's own code reads the shards."""
    pytest.importorskip("trl")
    from transformers import AutoProcessor

    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint")
    processor = AutoProcessor.from_pretrained(checkpoint).image_processor
    rows = write_rows(tmp_path / "volumes", 4)
    out = prepare(rows, tmp_path / "prepared", processor).folder
    shutil.rmtree(tmp_path / "volumes")
    blocked = tmp_path / "blocked"
    (blocked / "hf_mu2").mkdir(parents=True)
    (blocked / "hf_mu2" / "__init__.py").write_text("raise ImportError('not on this machine')")
    caches = {
        name: str(tmp_path / name) for name in ("HF_MODULES_CACHE", "HF_DATASETS_CACHE", "TRITON_CACHE_DIR")
    }
    environment = {
        **os.environ, **caches, "PYTHONPATH": str(blocked), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "trl.scripts.sft", "--model_name_or_path", str(checkpoint), "--dataset_name", str(out),
        "--trust_remote_code", "--use_cpu", "--bf16", "false", "--max_steps", "2",
        "--per_device_train_batch_size", "2", "--report_to", "none", "--logging_steps", "1",
        "--output_dir", str(tmp_path / "trained"),
    ]  # fmt: skip
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]
    losses = json.loads((tmp_path / "trained/checkpoint-2/trainer_state.json").read_text())["log_history"]
    assert all(np.isfinite(entry["loss"]) for entry in losses if "loss" in entry)


def test_a_folder_prepared_anew_is_not_answered_from_the_cache_of_the_old_one(tmp_path, rows):
    """`datasets` knows a folder by its name and card: other rows must come with another card."""
    datasets = pytest.importorskip("datasets")

    def ids(parent: str, some: list) -> list[str]:
        out = prepare(some, tmp_path / parent / "prepared", small_processor()).folder
        return list(datasets.load_dataset(str(out), split="train")["study_id"])

    assert ids("a", rows[:2]) != ids("b", rows[2:4])


def test_only_a_prepared_folder_is_relocated(tmp_path):
    with pytest.raises(ValueError, match="Only a prepared folder"):
        relocate(tmp_path)
