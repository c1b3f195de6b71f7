"""What the demo can do for a visitor, without a word about pages: open a study, ask, explain, select, hand out files.

Reads: uploads, phantoms made in code, loaded checkpoints.
Writes: files of each visitor in a private folder, deleted when the visitor leaves.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hf_mu2.explain.confidence import AssessedSentence, find_calibration
from hf_mu2.explain.evidence import Explanation, SentenceEvidence, explain_report
from hf_mu2.explain.evidence_figure import PLANES
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.model.volume_mu2 import Volume, guess_body_region
from hf_mu2.reporting.inference import Reader
from hf_mu2.reporting.report import content_id, out_of_domain
from hf_mu2.reporting.streaming import Messages, Reply, stream_reply
from hf_mu2.reporting.uploads import read_upload

from .conversation import ShownReply, Turn, assess_reply, history_of
from .gpu import on_gpu
from .limits import Limits
from .phantoms import make_case
from .sessions import Session, Sessions
from .slices import scale_heat


class Desk:
    """The models and the visitors of one running demo.

    Args:
        readers (`list[Reader]`): Loaded checkpoints; the first answers unless another is asked for.
        limits (`Limits`, *optional*): What one visitor may take.
    """

    def __init__(self, readers: list[Reader], limits: Limits | None = None):
        limits = Limits() if limits is None else limits
        names = [reader.name for reader in readers]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"The demo needs one or more models of different names, got {names}. Rename the folder of one."
            )
        self.readers = dict(zip(names, readers))
        self.limits = limits
        self.sessions = Sessions(limits.sessions, limits.idle_s)
        # The published preprocessing reads scanner padding; the others cut it off with their HU window anyway.
        self._clamp = all(reader.processor.image_processor.mode != "official" for reader in readers)
        readers_by_name = self.readers  # ZeroGPU pickles arguments: models go by name
        calibrations = {reader.name: find_calibration(reader) for reader in readers}
        samples = self.limits.confidence_samples

        def stream(
            name: str, volume: Volume, question: str, history: Messages, longest: int
        ) -> Iterator[Reply]:
            yield from stream_reply(readers_by_name[name], volume, question, history, longest)

        def explain(
            name: str, volume: Volume, question: str, answer: str, history: Messages, draws: int
        ) -> Explanation:
            reader = readers_by_name[name]
            return explain_report(reader, volume, question, answer, history=history, num_draws=draws)

        def assess(
            name: str, volume: Volume, question: str, answer: str, history: Messages
        ) -> list[AssessedSentence]:
            return assess_reply(
                readers_by_name[name], calibrations[name], samples, volume, question, answer, history
            )

        self._stream, self._explain, self._assess = on_gpu(stream), on_gpu(explain), on_gpu(assess)
        self._closed = threading.Event()
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    @property
    def models(self) -> list[str]:
        return list(self.readers)

    @property
    def notice(self) -> str:
        """State what a reader must know of the answers, for every model."""
        return " ".join(dict.fromkeys(reader.notice for reader in self.readers.values()))

    def open_upload(self, session: Session, path: str | Path, series: str | None = None) -> None:
        """Show an uploaded volume; the upload is deleted whatever comes of it.

        Raises:
            VolumeError: with what is wrong, without name or tag of the file.
        """
        session.clear()
        volume, unusual = read_upload(
            path, self.sessions.uploads, self.limits, series=series, clamp=self._clamp
        )
        self._show(session, volume, None, unusual)

    def open_case(self, session: Session, name: str) -> None:
        """Show a phantom.

        Raises:
            ValueError: if there is no phantom of that name.
        """
        volume, truth = make_case(name)
        self._show(session, volume, truth, [])

    def _show(self, session: Session, volume: Volume, truth: str | None, caveats: list[str]) -> None:
        region = guess_body_region(volume)
        for reader in self.readers.values():
            caveats = [*caveats, *out_of_domain(reader, region), *reader.caveats]
        session.show(volume, content_id(volume), truth, list(dict.fromkeys(caveats)))

    def ask(self, session: Session, question: str, models: list[str] | None = None) -> Iterator[Turn]:
        """Answer a question about the study shown, as the answers grow: one model after the other.

        The conversation so far goes along, each model's own. Setting `session.stop` or closing the iterator ends the
        answer and keeps what was said.

        Raises:
            ValueError: if no study is shown, a model is unknown, or the question is too long.
        """
        models = self._known(models or self.models[:1])
        volume = _open_volume(session)
        question = question.strip() or DEFAULT_QUESTION
        self.refuse_long(question, "A question")
        histories = {name: history_of(session.turns, name) for name in models}
        turn = Turn(question, [ShownReply(name) for name in models])
        session.select(None)
        session.stop.clear()
        session.turns.append(turn)
        yield turn
        for place, name in enumerate(models):
            try:
                for reply in self._stream(
                    name, volume, question, histories[name], self.limits.max_new_tokens
                ):
                    turn.replies[place] = ShownReply(**vars(reply))
                    yield turn
                    if session.stop.is_set():
                        break
            finally:
                if not turn.replies[place].finish_reason:
                    turn.replies[place].finish_reason = "stopped"

    def explain(self, session: Session) -> Iterator[str]:
        """Find what the sentences of the last turn rest on, how sure to be of them, and whether the maps hold.

        Yields before each step what is being done: the maps can be looked at while the rest is worked out. A visitor
        who stopped the answer wants none of it.
        """
        volume = session.volume
        if volume is None or not session.turns or session.stop.is_set():
            return
        earlier, turn = session.turns[:-1], session.turns[-1]
        replies = [reply for reply in turn.replies if reply.text.strip()]
        asked = {
            reply.model: (volume, turn.question, reply.text, history_of(earlier, reply.model))
            for reply in replies
        }
        for reply in replies:
            yield "Finding what each sentence rests on"
            reply.evidence = self._explain(reply.model, *asked[reply.model], 0)
        for reply in replies:
            yield "Asking again, to see which sentences come back"
            reply.assessed = self._assess(reply.model, *asked[reply.model])
        for reply in replies:
            yield "Testing the maps"
            reply.evidence = self._explain(reply.model, *asked[reply.model], self.limits.faithfulness_draws)

    def explain_text(
        self, session: Session, question: str, answer: str, model: str | None = None
    ) -> Explanation:
        """Find what any text rests on, taken as the answer to a question about the study shown.

        Raises:
            ValueError: if no study is shown, the model is unknown, or a text is empty or too long.
        """
        name = self._known([model or self.models[0]])[0]
        self.refuse_long(question, "A question")
        self.refuse_long(answer, "An answer")
        return self._explain(
            name,
            _open_volume(session),
            question.strip() or DEFAULT_QUESTION,
            answer,
            [],
            self.limits.faithfulness_draws,
        )

    def refuse_long(self, text: str, what: str) -> None:
        """Refuse a text beyond the limit."""
        most = self.limits.question_chars
        if len(text) > most:
            raise ValueError(f"{what} may have {most:,} characters, this one has {len(text):,}. Shorten it.")

    def _known(self, models: list[str]) -> list[str]:
        if unknown := [name for name in models if name not in self.readers]:
            raise ValueError(
                f"A model must be one of {', '.join(self.models)}, got {', '.join(unknown)}. Choose one of these."
            )
        return list(dict.fromkeys(models))

    def select(
        self, session: Session, turn: int, reply: int, sentence: int
    ) -> tuple[SentenceEvidence, dict[str, int]]:
        """Show what one sentence rests on: its heat map, and the slices through the hottest voxel of its key slice.

        Raises:
            ValueError: if there is no such sentence.
        """
        chosen = self._sentence(session, turn, reply, sentence)
        heat = scale_heat(chosen.heat)
        session.select((turn, reply, sentence), heat)
        axial = chosen.key_slices[0] if chosen.key_slices else heat.shape[0] // 2
        coronal, sagittal = np.unravel_index(int(heat[axial].argmax()), heat.shape[1:])
        return chosen, dict(zip(PLANES, (axial, int(coronal), int(sagittal))))

    def _sentence(self, session: Session, turn: int, reply: int, sentence: int) -> SentenceEvidence:
        try:
            if min(turn, reply, sentence) < 0:
                raise IndexError
            evidence = session.turns[turn].replies[reply].evidence
            if evidence is None:
                raise IndexError
            return evidence.sentences[sentence]
        except IndexError:
            raise ValueError(
                "A sentence must belong to an answer of this conversation whose evidence is known, this one does not. "
                "Wait for the answer, then choose again."
            ) from None

    def _sweep(self) -> None:
        while not self._closed.wait(min(60.0, max(1.0, self.limits.idle_s / 4))):
            self.sessions.sweep()

    def close(self) -> None:
        """Forget every visitor and delete all files."""
        self._closed.set()
        self.sessions.close()


def _open_volume(session: Session) -> Volume:
    if session.volume is None:
        raise ValueError("A study must be open before it is asked about. Drop a CT or pick a phantom.")
    return session.volume
