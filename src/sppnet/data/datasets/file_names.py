"""Decides which files are images and which folders may hold data.

The name decides, because a data set may have 100,000 files and opening all of them would be slow. Only a file without
a suffix is opened; its first bytes then show whether it is an image.
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
"""The part of a data set that a folder holds, by the folder's name in lower case."""

JUNK_FOLDERS = frozenset({  # made by NAS devices, desktops, archivers and Python, often for thumbnails or deleted files
    "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot", "~snapshot",
    "__macosx", "__pycache__", "$recycle.bin", "recycler", "system volume information", "lost+found",
    "lost.dir", "found.000", "network trash folder", "temporary items", "thevolumesettingsfolder",
})  # fmt: skip
JUNK_FILES = frozenset({"desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "icon\r", "picasa.ini", "thumbs.db"})

IMAGE_HEADER = re.compile(  # the first bytes of image formats, for files without a suffix
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftypavi[fs]"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|P[1-6]\s+[0-9#]|qoif|8BPS",
    re.DOTALL,
)

TO_CONVERT = frozenset({
    ".ai", ".arw", ".cr2", ".cr3", ".dcm", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif", ".jxl", ".nef",
    ".orf", ".pdf", ".raf", ".raw", ".rw2", ".svg",
})  # fmt: skip
TO_UNPACK = frozenset({".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"})
NOT_IMAGES = frozenset({  # videos, audio, incomplete downloads and texts; the notice does not advise renaming these
    ".3gp", ".aac", ".avi", ".crdownload", ".download", ".flv", ".identifier", ".m4a", ".m4v", ".mkv", ".mov", ".mp3",
    ".mp4", ".mpeg", ".mpg", ".mts", ".part", ".wav", ".webm", ".wmv",
    ".cfg", ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".info", ".ini", ".json", ".jsonl", ".log", ".md", ".md5",
    ".py", ".toml", ".tsv", ".txt", ".url", ".xls", ".xlsx", ".xml", ".xmp", ".yaml", ".yml",
})  # fmt: skip
NO_SUFFIX = "without a suffix"
SHOWN = 5  # a notice lists at most this many suffixes


def is_ignored_folder(name: str) -> bool:
    """Whether to ignore a folder with this name, because it is hidden or junk."""
    return name.startswith(".") or name.casefold() in JUNK_FOLDERS


def has_image_suffix(name: str) -> bool:
    """Whether a file with this name has the suffix of an image and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


class ImageFilter:
    """Distinguishes image files from other files, and counts the other files by suffix for a notice."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.example = ""

    def is_image(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file is an image, judging by its suffix or, if it has none, its first bytes.

        Files that are not images are counted, unless they are junk.
        """
        name = entry.name
        if name[name.rfind(".") :].lower() in SUFFIXES:  # the fast path for nearly all files
            return True
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        if suffix == "." or " " in suffix:  # the dot is punctuation and does not start a suffix
            suffix = ""
        if not suffix and _has_image_header(entry):
            return True
        if name.casefold() not in JUNK_FILES:
            self.skipped[suffix or NO_SUFFIX] += 1
            self.example = min(self.example or entry.path, entry.path)
        return False

    def describe_skipped(self) -> str:
        """A line about the skipped files; empty if there are none."""
        if not self.skipped:
            return ""
        ranked = sorted(self.skipped, key=lambda suffix: (-self.skipped[suffix], suffix))
        kinds = [f"{self.skipped[suffix]} {suffix}" for suffix in ranked[:SHOWN]]
        if rest := sum(self.skipped[suffix] for suffix in ranked[SHOWN:]):
            kinds.append(f"{rest} more")
        advice = "; ".join(["", *_advise(ranked[:SHOWN])])
        line = (
            f"{self.skipped.total()} file(s) are not read, because they do not have the suffix of an image:"
            f" {', '.join(kinds)} (such as {self.example}){advice}"
        )
        return os.fsencode(line).decode(errors="replace")  # a name may hold any bytes, but run records are UTF-8


def _advise(suffixes: Iterable[str]) -> list[str]:
    """What a user can do to have files with these suffixes read."""
    suffixes_by_advice: dict[str, list[str]] = {}
    for suffix in suffixes:
        advice = (
            "convert {} files to JPEG or PNG to have them read" if suffix in TO_CONVERT
            else "unpack {} files to have the images inside read" if suffix in TO_UNPACK
            else "" if suffix in NOT_IMAGES or suffix == NO_SUFFIX
            else "rename {} files to have them read, if they are images"
        )  # fmt: skip
        suffixes_by_advice.setdefault(advice, []).append(suffix)
    return [advice.format(", ".join(group)) for advice, group in sorted(suffixes_by_advice.items()) if advice]


def _has_image_header(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.is_file():  # opening a named pipe would wait for a writer
            return False
        with open(entry.path, "rb") as file:  # noqa: PTH123
            return IMAGE_HEADER.match(file.read(32)) is not None
    except OSError:
        return False
