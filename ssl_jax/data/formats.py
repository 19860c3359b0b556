"""What a file is by its first bytes, whatever its name: for messages about files that cannot be read.

A file is not refused by this: readers try first, and what they cannot read is named here.
"""

import re
from collections.abc import Mapping, Sequence

HEAD = 1024  # bytes to look at
# What readers of pictures and videos accept, and at what place which bytes tell it. Sources: "List of file
# signatures" of Wikipedia, and the specifications of the formats.
PICTURES = {
    "a JPEG file": [(0, b"\xff\xd8\xff")],
    "a PNG file": [(0, b"\x89PNG\r\n\x1a\n")],
    "a GIF file": [(0, b"GIF87a"), (0, b"GIF89a")],
    "a TIFF file": [(0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")],
    "a WebP file": [(8, b"WEBP")],
    "a BMP file": [(0, b"BM")],
}
VIDEOS = {
    "an MP4 or QuickTime file": [
        (4, name) for name in (b"ftyp", b"moov", b"mdat", b"wide", b"skip", b"free")
    ],
    "a Matroska or WebM file": [(0, b"\x1aE\xdf\xa3")],
    "an AVI file": [(8, b"AVI ")],
}
POINTERS = {  # small files of text that stand for files that were not fetched
    "a Git LFS pointer: run git lfs pull": [(0, b"version https://git-lfs.github.com/spec/")],
    "a git-annex pointer: run git annex get": [(0, b"/annex/objects/")],
}
# No reader here accepts these. The first that fits is meant; those in `PICTURES` and `VIDEOS` are later.
OTHERS = {
    **POINTERS,
    "a HEIF file (AVIF)": [(4, b"ftypavif"), (4, b"ftypavis")],
    "a HEIF file (HEIC)": [
        (4, b"ftyp" + brand) for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")
    ],
    "a HEIF file": [(4, b"ftypmif1"), (4, b"ftypmsf1")],
    "a Canon CR3 raw picture": [(4, b"ftypcrx ")],
    "a JPEG XL file": [(0, b"\xff\x0a"), (4, b"JXL \r\n\x87\n")],
    "a JPEG 2000 file": [(4, b"jP  \r\n\x87\n"), (0, b"\xffO\xffQ")],
    "a Photoshop file": [(0, b"8BPS")],
    "an icon": [(0, b"\0\0\x01\0")],
    "an OpenEXR file": [(0, b"v/1\x01")],
    "a DirectDraw surface": [(0, b"DDS ")],
    "a DICOM file": [(128, b"DICM")],
    "a FITS file": [(0, b"SIMPLE  =")],
    "an HDF5 file": [(0, b"\x89HDF\r\n\x1a\n")],
    "a NumPy array": [(0, b"\x93NUMPY")],
    "a PDF file": [(0, b"%PDF-")],
    "a PostScript file": [(0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6")],
    "a ZIP archive": [(0, b"PK\x03\x04"), (0, b"PK\x05\x06")],
    "a RAR archive": [(0, b"Rar!\x1a\x07")],
    "a 7z archive": [(0, b"7z\xbc\xaf\x27\x1c")],
    "a tar archive": [(257, b"ustar")],
    "a gzip file": [(0, b"\x1f\x8b")],
    "a bzip2 file": [(0, b"BZh")],
    "an xz file": [(0, b"\xfd7zXZ\0")],
    "a Zstandard file": [(0, b"\x28\xb5\x2f\xfd")],
    "an AppleDouble file of macOS": [(0, b"\0\x05\x16\x07")],
    "a Windows shortcut": [(0, b"L\0\0\0\x01\x14\x02\0")],
    "an ASF file (WMV)": [(0, b"0&\xb2u\x8ef\xcf\x11")],
    "an FLV file": [(0, b"FLV\x01")],
    "an MPEG program stream": [(0, b"\0\0\x01\xba")],
    "an MPEG video stream without a container": [(0, b"\0\0\x01\xb3")],
    "an H.264 or H.265 stream without a container": [
        (0, b"\0\0\0\x01" + unit) for unit in (b"\x09", b"\x27", b"\x67", b"@\x01", b"F\x01")
    ],
    "an Ogg file": [(0, b"OggS")],
    "a RealMedia file": [(0, b".RMF")],
    "an MXF file": [(0, b"\x06\x0e+4\x02\x05\x01\x01")],
    "a DV file": [(0, b"\x1f\x07\0")],
    "an IVF file": [(0, b"DKIF")],
    "a YUV4MPEG2 file": [(0, b"YUV4MPEG2 ")],
    "a playlist": [(0, b"#EXTM3U"), (0, b"ffconcat version")],
    "a sound file": [(8, b"WAVE"), (0, b"ID3"), (0, b"fLaC")],
}
# For text, of which only the beginning is free: (what it is, what it looks like in small letters).
TEXTS = (
    ("an SVG drawing", rb"(<\?xml.*?)?(<!--.*?-->\s*)?(<!doctype svg.*?>\s*)?<svg\b"),
    ("a web page", rb"<!doctype html|<html\b|<\?xml.*<html\b"),
    ("an XML file", rb"<\?xml"),
    ("a JSON file", rb"[{\[]\s*[\"{\[]"),
)
AVIF_BRANDS = (b"avif", b"avis")


def identify(head: bytes) -> str | None:
    """Returns what a file is, as part of a sentence ("a HEIF file (AVIF)"); None where that is not known.

    Args:
        head: its first `HEAD` bytes, or all if it has fewer.
    """
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "a file that begins with nothing but zeros"
    if any(head[start : start + 3 * step : step] == b"GGG" for start, step in ((0, 188), (4, 192), (0, 204))):
        return "an MPEG transport stream"
    for known in (OTHERS, PICTURES, VIDEOS):
        for what, signatures in known.items():
            if any(head.startswith(value, place) for place, value in signatures):
                return _heif(head) if what == "a HEIF file" else what
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for what, pattern in TEXTS:
        if re.match(pattern, text, re.DOTALL):
            return what
    if not re.search(rb"[\0-\x08\x0e-\x1f\x7f-\xff]", head):
        return "a file of text"
    return None


def _heif(head: bytes) -> str:
    """What a HEIF file of a general brand is: the brands it is compatible with follow in its first box."""
    brands = head[8 : int.from_bytes(head[:4], "big")]
    return f"a HEIF file ({'AVIF' if any(brand in brands for brand in AVIF_BRANDS) else 'HEIC'})"


def explain(head: bytes, words: str, known: Mapping[str, Sequence[tuple[int, bytes]]]) -> str:
    """Returns why a file cannot be read, for a message.

    Args:
        head: its first `HEAD` bytes.
        words: what its reader says of it; nothing is passed on of words with addresses of objects.
        known: `PICTURES` or `VIDEOS`, what the reader accepts.
    """
    what = identify(head)
    if what is not None and what not in known:
        return what
    if not words or re.search(r"\b0x[0-9a-f]+\b", words):
        words = "broken, cut off, or of a kind that is not read" if what else "no known format"
    return f"{what}: {words}" if what else words
