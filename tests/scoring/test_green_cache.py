"""The replies on disk: nothing lost, nothing doubled, wherever a process was killed."""

import json
import os

import pytest

from hf_mu2.scoring.judge_cache import Reply, ReplyCache

REPLIES = {f"key{i}": Reply(f"line one\nLäsion \u2028 {i}", "stop") for i in range(3)}


def write(folder, replies=REPLIES):
    with ReplyCache(folder) as cache:
        for key, reply in replies.items():
            cache.add({key: reply}, {"judge": "m"})
    (path,) = folder.iterdir()
    return path


def test_replies_come_back_as_they_were(tmp_path):
    write(tmp_path / "c")
    assert ReplyCache(tmp_path / "c").replies == REPLIES


def test_a_file_cut_anywhere_gives_its_whole_lines(tmp_path):
    """As a process leaves it that was killed while it wrote."""
    path = write(tmp_path / "c")
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        assert len(ReplyCache(tmp_path / "c").replies) == sum(end <= cut for end in ends)


def test_a_run_after_a_kill_never_touches_the_broken_file(tmp_path):
    path = write(tmp_path / "c")
    broken = path.read_bytes()[:-5]
    path.write_bytes(broken)
    with ReplyCache(tmp_path / "c") as cache:
        assert "key2" not in cache.replies
        cache.add({"key2": REPLIES["key2"]}, {})
    assert path.read_bytes() == broken
    assert ReplyCache(tmp_path / "c").replies == REPLIES


def test_lines_are_on_disk_before_the_next_is_asked_for(tmp_path):
    cache = ReplyCache(tmp_path / "c")
    cache.add({"a": Reply("x", "stop")}, {"judge": "m"})
    (path,) = (tmp_path / "c").iterdir()
    assert json.loads(path.read_text()) == {"key": "a", "judge": "m", "finish_reason": "stop", "reply": "x"}


def test_two_writers_share_a_folder_not_a_file(tmp_path):
    with ReplyCache(tmp_path / "c") as one, ReplyCache(tmp_path / "c") as two:
        one.add({"a": Reply("1", "stop")}, {})
        two.add({"b": Reply("2", "stop")}, {})
        one.refresh()
        assert set(one.replies) == {"a", "b"}
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_failures_are_kept_apart_and_make_way_for_a_reply(tmp_path):
    with ReplyCache(tmp_path / "c") as cache:
        cache.add({"a": Reply(error="HTTP 500"), "b": Reply(error="HTTP 500")}, {})
        cache.add({"a": Reply("x", "stop")}, {})
    again = ReplyCache(tmp_path / "c")
    assert set(again.replies) == {"a"} and "b" in again.failures


def test_of_two_failures_the_last_is_told(tmp_path):
    for second, error in enumerate(("first", "second", "third")):
        path = write(tmp_path / error, {"a": Reply(error=error)})
        os.utime(path, (second, second))
        (tmp_path / "c").mkdir(exist_ok=True)
        path.rename(tmp_path / "c" / path.name)
    assert ReplyCache(tmp_path / "c").failures["a"].error == "third"


def test_a_folder_without_replies_is_not_made(tmp_path):
    ReplyCache(tmp_path / "c").close()
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("line", ["{", "[]", '{"reply": "x"}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    path = write(tmp_path / "c")
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(ValueError, match=r"line 1 of .*replies-.*delete that line"):
        ReplyCache(tmp_path / "c")
