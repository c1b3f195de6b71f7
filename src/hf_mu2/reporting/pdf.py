"""A report as PDF: notice, findings, impression, key slices, and what wrote it.

Reads: a [`Report`], pictures of slices.
Writes: bytes of a PDF, the same for the same document.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image

from hf_mu2.reporting.document import Document

_INK, _MUTED, _LINE = "#1b1f24", "#5c6570", "#d5dae0"
_NOTICE_BACK, _NOTICE_INK = "#fff3d6", "#6b4a00"
_COLUMNS = 2


def render_pdf(
    document: Document,
    pictures: Sequence[tuple[Image.Image, str]] = (),
    facts: Sequence[tuple[str, str]] = (),
    font: str | Path | None = None,
) -> bytes:
    """Lay a document out on A4.

    Args:
        pictures (`Sequence[tuple[Image, str]]`): Key slices with their captions, two to a row; wide ones take a row.
        facts (`Sequence[tuple[str, str]]`): Further lines of the table at the top, e.g. `("Volume", "...")`.
        font (`str` or `Path`, *optional*): TrueType file for reports beyond Western European letters.

    Raises:
        ValueError: if the text holds letters that the font has not.
        ImportError: if reportlab is not installed.
    """
    try:
        from reportlab.lib import colors
        from reportlab.lib.enums import TA_LEFT
        from reportlab.lib.pagesizes import A4
        from reportlab.lib.styles import ParagraphStyle
        from reportlab.lib.units import mm
        from reportlab.platypus import KeepTogether, Paragraph, SimpleDocTemplate, Spacer, Table
    except ImportError as error:
        raise ImportError('Writing a PDF needs reportlab: `pip install "hf_mu2[clinical]"`.') from error

    plain, bold = _fonts(document, font)

    def style(size: float, color: str = _INK, face: str = plain, **more: Any) -> ParagraphStyle:
        return ParagraphStyle(
            f"{face}{size}",
            fontName=face,
            fontSize=size,
            leading=size * 1.45,
            textColor=colors.HexColor(color),
            alignment=TA_LEFT,
            **more,
        )

    body, small, heading = style(10.5), style(8, _MUTED), style(12, face=bold, spaceBefore=10, spaceAfter=3)
    width = A4[0] - 40 * mm - 12  # the frame's own padding, 6 points on each side

    def table(rows: list[list[Any]], widths: list[float], *rules: tuple[Any, ...]) -> Table:
        padding = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("VALIGN", (0, 0), (-1, -1), "TOP")]
        return Table(rows, widths, style=[*padding, *rules], hAlign="LEFT")

    def text(value: str, look: ParagraphStyle) -> Paragraph:
        return Paragraph(escape(value).replace("\n", "<br/>"), look)

    lines = [
        ("Study", document.study_id),
        ("Model", f"{document.model}, revision {document.revision}"),
        ("Written", document.created.strftime("%Y-%m-%d %H:%M %Z").strip()),
        *facts,
    ]
    notice = table(
        [[text(document.notice, style(9.5, _NOTICE_INK, bold))]],
        [width],
        ("BACKGROUND", (0, 0), (-1, -1), colors.HexColor(_NOTICE_BACK)),
        ("LEFTPADDING", (0, 0), (-1, -1), 8),
        ("TOPPADDING", (0, 0), (-1, -1), 6),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 7),
    )
    story = [
        text("CT report", style(18, face=bold, spaceAfter=8)),
        notice,
        Spacer(0, 8),
        table(
            [[text(name, small), text(value, style(9))] for name, value in lines],
            [22 * mm, width - 22 * mm],
            ("LINEBELOW", (0, 0), (-1, -1), 0.4, colors.HexColor(_LINE)),
            ("TOPPADDING", (0, 0), (-1, -1), 2),
        ),
    ]
    for name, content in document.sections:
        story += [text(name, heading), text(content, body)]
    if document.warnings:
        story.append(text("What to know of this report", heading))
        story += [text(warning, body) for warning in document.warnings]
    if pictures:
        first, *others = list(_picture_rows(pictures, width, small, text, table))
        story.append(KeepTogether([text("Key slices", heading), first]))
        story += others

    def footer(canvas: Any, page: Any) -> None:
        canvas.saveState()
        canvas.setFont(plain, 7.5)
        canvas.setFillColor(colors.HexColor(_MUTED))
        canvas.drawString(20 * mm, 11 * mm, document.notice)
        canvas.drawRightString(A4[0] - 20 * mm, 11 * mm, f"{document.study_id}   {page.page}")
        canvas.restoreState()

    stream = io.BytesIO()
    SimpleDocTemplate(
        stream,
        pagesize=A4,
        leftMargin=20 * mm,
        rightMargin=20 * mm,
        topMargin=18 * mm,
        bottomMargin=20 * mm,
        title=f"CT report {document.study_id}",
        author=f"{document.model}, revision {document.revision}",
        subject=document.notice,
        creator="hf-mu2",
        invariant=1,
    ).build(story, onFirstPage=footer, onLaterPages=footer)
    return stream.getvalue()


def _picture_rows(pictures: Any, width: float, small: Any, text: Any, table: Any) -> Any:
    """Yield pictures with captions below, side by side where they are no wider than tall."""
    from reportlab.platypus import Image as Picture

    def cell(picture: Image.Image, caption: str, room: float) -> list[Any]:
        stream = io.BytesIO()
        picture.convert("RGB").save(stream, "PNG")
        return [Picture(stream, room, room * picture.height / picture.width), text(caption, small)]

    row: list[list[Any]] = []
    for picture, caption in pictures:
        if picture.width > 1.6 * picture.height:
            yield table([[cell(picture, caption, width)]], [width])
            continue
        row.append(cell(picture, caption, width / _COLUMNS - 6))
        if len(row) == _COLUMNS:
            yield table([row], [width / _COLUMNS] * _COLUMNS)
            row = []
    if row:
        yield table([row], [width / _COLUMNS] * len(row))


def _fonts(document: Document, font: str | Path | None) -> tuple[str, str]:
    """Return the names of the plain and the bold face, refusing letters they cannot draw."""
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFError, TTFont

    said = "".join(
        [document.findings, document.impression, *document.warnings, document.notice, document.model]
    )
    if font is None:
        missing = sorted({letter for letter in said if not _is_western(letter)})
        faces = ("Helvetica", "Helvetica-Bold")
    else:
        try:
            face = TTFont("report", str(font))
        except (TTFError, OSError) as error:
            raise ValueError(
                f"A font is a TrueType file, `{font}` is not one ({error}). Pass a .ttf."
            ) from error
        pdfmetrics.registerFont(face)
        missing = sorted({letter for letter in said if ord(letter) not in face.face.charToGlyph} - {"\n"})
        faces = ("report", "report")
    if missing:
        raise ValueError(
            f"Every letter of a report must be drawn, {'the standard font' if font is None else f'`{font}`'} lacks "
            f"{', '.join(f'U+{ord(letter):04X}' for letter in missing[:5])}. Pass a TrueType font that has them "
            "(`font=`, `--font`), e.g. a Noto font."
        )
    return faces


def _is_western(letter: str) -> bool:
    try:
        letter.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True
