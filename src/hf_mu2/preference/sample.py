"""Sample several candidate reports per study: one pass of the vision tower and one prefill, however many.

Reads: studies (see `reporting/studies.py`), a checkpoint.
Writes: one row per study, JSONL or Parquet by the ending of the file, and `<stem>.manifest.json` beside it.

A row is what `hf-mu2 score` and `hf-mu2 pairs` read:

    {"notice": "Research software ...",
     "study_id": "train_1_a", "patient_id": "train_1" or null, "egress": true, false or null,
     "images": ["/data/train_1_a_1.nii.gz"],               paths or volume references, as the dataset has them
     "prompt": [{"role": "user", "content": "Write ..."}], what was asked, as the dataset has it
     "candidates": [{"index": 0, "text": "Findings: ...", "finish_reason": "eos" or "length", "num_tokens": 81,
                     "seed": 7150...}, ...]}

`images` is null where the dataset holds the voxels themselves, for volumes are never copied. `hf-mu2 score` adds to the
row `reference` (null without one) and `signature`, and to every candidate `scores` ({"label_f1": 0.5, "total": 0.5},
null where there is none; `label_f1` is always among them, `total` is what `--by` asked for) and `status`, `"ok"` or why
there is no total.

Generation of transformers takes no generator, so the global one is seeded per batch, in a fork that leaves the caller's
alone. Batches are the same whoever does them, so resumed and sharded runs give the same candidates on one kind of
machine.
"""
