"""What a class means in SNOMED CT, the vocabulary in which DICOM names anatomy.

Only what is certain is coded: vertebrae and the structures of TotalSegmentator's ``total`` task.
Every other class gets a private code with the class's own name, in the category Tissue, which says
no more than that it is part of the body.

Examples:
    >>> code_of("vertebrae_L3").meaning, code_of("kidney_left").side
    ('L3 vertebra', 'left')
    >>> code_of("membrane").scheme
    '99LAMELLA'
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["AnatomyCode", "code_of"]

SCT = "SCT"
PRIVATE = "99LAMELLA"

_MOST_VALUE = 16
_MOST_MEANING = 64
"""Longest code value and meaning (value representations SH and LO)."""


@dataclass(frozen=True, slots=True)
class AnatomyCode:
    """A coded concept.

    Args:
        value: the code.
        scheme: ``SCT`` (SNOMED CT) or ``99LAMELLA`` (the class's own name).
        meaning: in words.
        side: which of a pair.
    """

    value: str
    scheme: str
    meaning: str
    side: Literal["left", "right"] | None = None

    @property
    def is_anatomy(self) -> bool:
        """Whether it is a known anatomical structure."""
        return self.scheme == SCT


def code_of(name: str) -> AnatomyCode:
    """The code of a class.

    Args:
        name: as a model calls it, ``vertebrae_T12``, ``kidney_left``; any case, spaces too.
    """
    plain = re.sub(r"[\s\-]+", "_", name.strip().lower())
    level = re.fullmatch(r"(?:vertebrae?_)?([ctls])(\d{1,2})", plain)
    if level is not None:
        letter, number = level.group(1).upper(), int(level.group(2))
        if f"{letter}{number}" in _VERTEBRAE:
            return AnatomyCode(_VERTEBRAE[f"{letter}{number}"], SCT, f"{letter}{number} vertebra")
        if (letter, number) in (("L", 6), ("T", 13)):
            return AnatomyCode("51282000", SCT, "Vertebra")
    rib = re.fullmatch(r"rib_(left|right)_(\d{1,2})", plain)
    if rib is not None and 1 <= int(rib.group(2)) <= len(_RIBS):
        code, meaning = _RIBS[int(rib.group(2)) - 1]
        return AnatomyCode(code, SCT, meaning, _side(rib.group(1)))
    if plain in _STRUCTURES:
        return AnatomyCode(_STRUCTURES[plain][0], SCT, _STRUCTURES[plain][1])
    paired = re.fullmatch(r"(.+)_(left|right)", plain)
    if paired is not None and paired.group(1) in _PAIRED:
        code, meaning = _PAIRED[paired.group(1)]
        return AnatomyCode(code, SCT, meaning, _side(paired.group(2)))
    return AnatomyCode(_private_value(plain), PRIVATE, name.strip()[:_MOST_MEANING] or "class")


def _side(word: str) -> Literal["left", "right"]:
    return "left" if word == "left" else "right"


def _private_value(plain: str) -> str:
    """A code of at most 16 characters; long names keep their beginning and get a checksum."""
    value = re.sub(r"[^a-z0-9_]", "", plain) or "class"
    if len(value) <= _MOST_VALUE:
        return value
    digest = hashlib.sha256(plain.encode()).hexdigest()[:5]
    return f"{value[: _MOST_VALUE - 6]}_{digest}"


_VERTEBRAE = {
    "C1": "14806007", "C2": "39976000", "C3": "113205007", "C4": "5329002", "C5": "36978003",
    "C6": "36054005", "C7": "87391001",
    "T1": "64864005", "T2": "53733008", "T3": "1626008", "T4": "73071006", "T5": "56401006",
    "T6": "45296009", "T7": "62487009", "T8": "11068009", "T9": "82687006", "T10": "7610001",
    "T11": "12989004", "T12": "23215003",
    "L1": "66794005", "L2": "14293000", "L3": "36470004", "L4": "11994002", "L5": "49668003",
    "S1": "65985001",
}  # fmt: skip

_RIBS = (
    ("48535007", "First rib"),
    ("78247007", "Second rib"),
    ("25888004", "Third rib"),
    ("25523003", "Fourth rib"),
    ("15339008", "Fifth rib"),
    ("59558009", "Sixth rib"),
    ("24915002", "Seventh rib"),
    ("5953002", "Eighth rib"),
    ("22565002", "Ninth rib"),
    ("77644006", "Tenth rib"),
    ("58830002", "Eleventh rib"),
    ("43993008", "Twelfth rib"),
)

_STRUCTURES = {
    "spleen": ("78961009", "Spleen"),
    "gallbladder": ("28231008", "Gallbladder"),
    "liver": ("10200004", "Liver"),
    "stomach": ("69695003", "Stomach"),
    "pancreas": ("15776009", "Pancreas"),
    "lung_middle_lobe_right": ("72481006", "Middle lobe of right lung"),
    "esophagus": ("32849002", "Esophagus"),
    "trachea": ("44567001", "Trachea"),
    "thyroid_gland": ("69748006", "Thyroid gland"),
    "small_bowel": ("30315005", "Small intestine"),
    "duodenum": ("38848004", "Duodenum"),
    "colon": ("71854001", "Colon"),
    "urinary_bladder": ("89837001", "Urinary bladder"),
    "prostate": ("41216001", "Prostate"),
    "sacrum": ("54735007", "Sacrum"),
    "vertebrae": ("51282000", "Vertebra"),
    "heart": ("80891009", "Heart"),
    "heart_myocardium": ("74281007", "Myocardium"),
    "heart_atrium_left": ("82471001", "Left atrium"),
    "heart_atrium_right": ("73829009", "Right atrium"),
    "heart_ventricle_left": ("87878005", "Left ventricle of heart"),
    "heart_ventricle_right": ("53085002", "Right ventricle of heart"),
    "atrial_appendage_left": ("33626005", "Left auricular appendage"),
    "costal_cartilages": ("50016007", "Costal Cartilage"),
    "aorta": ("15825003", "Aorta"),
    "pulmonary_artery": ("81040000", "Pulmonary artery"),
    "pulmonary_vein": ("122972007", "Pulmonary vein"),
    "brachiocephalic_trunk": ("12691009", "Brachiocephalic artery"),
    "superior_vena_cava": ("48345005", "Superior vena cava"),
    "inferior_vena_cava": ("64131007", "Inferior vena cava"),
    "portal_vein_and_splenic_vein": ("110765007", "Portal vein and splenic vein"),
    "spinal_cord": ("2748008", "Spinal cord"),
    "brain": ("12738006", "Brain"),
    "skull": ("89546000", "Skull"),
    "sternum": ("56873002", "Sternum"),
    "face": ("89545001", "Face"),
}

_PAIRED = {
    "kidney": ("64033007", "Kidney"),
    "adrenal_gland": ("23451007", "Adrenal gland"),
    "lung": ("39607008", "Lung"),
    "lung_upper_lobe": ("45653009", "Upper lobe of lung"),
    "lung_lower_lobe": ("90572001", "Lower lobe of lung"),
    "subclavian_artery": ("36765005", "Subclavian artery"),
    "common_carotid_artery": ("32062004", "Common carotid artery"),
    "brachiocephalic_vein": ("8887007", "Brachiocephalic vein"),
    "iliac_artery": ("73634005", "Common iliac artery"),
    "iliac_vena": ("46027005", "Common iliac vein"),
    "humerus": ("85050009", "Humerus"),
    "scapula": ("79601000", "Scapula"),
    "clavicula": ("51299004", "Clavicle"),
    "femur": ("71341001", "Femur"),
    "gluteus_maximus": ("181674001", "Gluteus maximus muscle"),
    "gluteus_medius": ("78333006", "Gluteus medius muscle"),
    "gluteus_minimus": ("75297007", "Gluteus minimus muscle"),
    "autochthon": ("244849004", "Deep muscle of back"),
    "iliopsoas": ("68455001", "Iliopsoas muscle"),
}
