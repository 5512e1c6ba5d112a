"""Class names in NIfTI headers: the label table of Caret, as TotalSegmentator writes it too.

It is a piece of XML among the header's extensions::

    <LabelTable>
      <Label Key="26" Red="0.0" Green="0.0" Blue="1.0" Alpha="1"><![CDATA[vertebrae_S1]]></Label>

Examples:
    >>> text = '<LabelTable><Label Key="3" Red="1" Green="0.5" Blue="0">liver</Label></LabelTable>'
    >>> label_table(text.encode())
    (LabelClass(value=3, name='liver', color=(255, 128, 0)),)
"""

import re

from lamella.volume import LabelClass

__all__ = ["label_table"]

_TABLE = re.compile(rb"<LabelTable>(.*?)</LabelTable>", re.DOTALL)
_LABEL = re.compile(rb"<Label\b([^>]*)>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>", re.DOTALL)
_ATTRIBUTE = re.compile(rb'(\w+)\s*=\s*"([^"]*)"')


def label_table(extensions: bytes) -> tuple[LabelClass, ...]:
    """Classes of the first label table, without the background; empty where there is none.

    Args:
        extensions: all of a header's extensions.
    """
    table = _TABLE.search(extensions)
    if table is None:
        return ()
    classes: dict[int, LabelClass] = {}
    for attributes, quoted, plain in _LABEL.findall(table.group(1)):
        found = dict(_ATTRIBUTE.findall(attributes))
        name = (quoted or plain).decode("utf-8", "replace").strip()
        try:
            value = int(found[b"Key"])
            shares = [float(found[part]) for part in (b"Red", b"Green", b"Blue")]
        except (KeyError, ValueError):
            continue
        if value > 0 and name and all(0 <= share <= 1 for share in shares):
            red, green, blue = (round(share * 255) for share in shares)
            classes.setdefault(value, LabelClass(value, name, (red, green, blue)))
    return tuple(classes[value] for value in sorted(classes))
