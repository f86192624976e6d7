"""Which files and folders may be data, by their names; of a file without suffix, by its first bytes.

A listing passes 100,000 names through here, so nothing is opened that a name decides.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable

SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".bw", ".cur", ".dds", ".dib", ".fits", ".gif", ".icb", ".icns", ".ico", ".im", ".j2c",
    ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcx", ".pfm",
    ".pgm", ".png", ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff",
    ".vda", ".vst", ".webp", ".xbm", ".xpm",
})  # fmt: skip

PARTS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The part that a folder of this name holds, in any case."""

JUNK_FOLDERS = frozenset({  # what NAS, desktops, archivers and notebooks leave; they hold thumbnails and deleted files
    "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot", "~snapshot",
    "__macosx", "__pycache__", "$recycle.bin", "recycler", "system volume information", "lost+found",
    "lost.dir", "found.000", "network trash folder", "temporary items", "thevolumesettingsfolder",
})  # fmt: skip
JUNK_FILES = frozenset({"desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "icon\r", "picasa.ini", "thumbs.db"})

PICTURE = re.compile(  # how the formats begin that are met without a suffix
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftypavi[fs]"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|P[1-6]\s+[0-9#]|qoif|8BPS",
    re.DOTALL,
)

TO_CONVERT = frozenset({
    ".ai", ".arw", ".cr2", ".cr3", ".dcm", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif", ".jxl", ".nef",
    ".orf", ".pdf", ".raf", ".raw", ".rw2", ".svg",
})  # fmt: skip
TO_UNPACK = frozenset({".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"})
NO_PICTURES = frozenset({  # nor is a film, or half a download, one by another name
    ".3gp", ".aac", ".avi", ".crdownload", ".download", ".flv", ".identifier", ".m4a", ".m4v", ".mkv", ".mov", ".mp3",
    ".mp4", ".mpeg", ".mpg", ".mts", ".part", ".wav", ".webm", ".wmv",
    ".cfg", ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".info", ".ini", ".json", ".jsonl", ".log", ".md", ".md5",
    ".py", ".toml", ".tsv", ".txt", ".url", ".xls", ".xlsx", ".xml", ".xmp", ".yaml", ".yml",
})  # fmt: skip
NO_SUFFIX = "without suffix"
SHOWN = 5  # kinds of files that a line names


def ignored(folder: str) -> bool:
    """Whether a folder of this name is never data: it is hidden, or junk."""
    return folder.startswith(".") or folder.casefold() in JUNK_FOLDERS


def has_suffix(file: str) -> bool:
    """Whether a file of this name is a picture by its suffix, and not hidden."""
    return not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES  # noqa: PTH122


class NotRead:
    """Tells pictures from other files, and counts by suffix the files that are not read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.example = ""

    def is_picture(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file is a picture by its suffix or, if it has none, by its first bytes."""
        name = entry.name
        if name[name.rfind(".") :].lower() in SUFFIXES:  # nearly all of them
            return True
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        if suffix == "." or " " in suffix:  # the end of a sentence
            suffix = ""
        if not suffix and _begins_like_a_picture(entry):
            return True
        if name.casefold() not in JUNK_FILES:
            self.counts[suffix or NO_SUFFIX] += 1
            self.example = min(self.example or entry.path, entry.path)
        return False

    def text(self) -> str:
        """What to say of the files that are not read; empty if there are none."""
        if not self.counts:
            return ""
        ranked = sorted(self.counts, key=lambda suffix: (-self.counts[suffix], suffix))
        kinds = [f"{self.counts[suffix]} {suffix}" for suffix in ranked[:SHOWN]]
        if rest := sum(self.counts[suffix] for suffix in ranked[SHOWN:]):
            kinds.append(f"{rest} others")
        advice = "; ".join(["", *_advice(ranked[:SHOWN])])
        text = (
            f"{self.counts.total()} file(s) are not read, as their names do not end like a picture's:"
            f" {', '.join(kinds)} (such as {self.example}){advice}"
        )
        return os.fsencode(text).decode(errors="replace")  # a name may be anything, and records are UTF-8


def _advice(suffixes: Iterable[str]) -> list[str]:
    """What would have files of these suffixes read."""
    kinds: dict[str, list[str]] = {}
    for suffix in suffixes:
        advice = (
            "convert {} to JPEG or PNG to have them read" if suffix in TO_CONVERT
            else "unpack {} to have what is inside read" if suffix in TO_UNPACK
            else "" if suffix in NO_PICTURES or suffix == NO_SUFFIX
            else "rename {} to have them read, if they are pictures"
        )  # fmt: skip
        kinds.setdefault(advice, []).append(suffix)
    return [advice.format(", ".join(named)) for advice, named in sorted(kinds.items()) if advice]


def _begins_like_a_picture(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.is_file():  # a pipe would wait for a writer
            return False
        with open(entry.path, "rb") as file:  # noqa: PTH123
            return PICTURE.match(file.read(32)) is not None
    except OSError:
        return False
