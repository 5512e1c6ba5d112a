"""What there is to open in a zarr hierarchy: images, labels, plates, series, bare arrays."""

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.errors import InputError, UnreadableFileError
from lamella.io.format import ContentEntry, OpenOptions
from lamella.io.ome_zarr_multiscale import dataset_paths
from lamella.io.ome_zarr_tree import METADATA_FILES, Node, Tree, is_hierarchy, open_tree
from lamella.volume.volume import Note

__all__ = ["Candidate", "candidates", "choose", "content_entries", "locate"]

_MAX_NODES = 5000
_MAX_DEPTH = 12
_NAMED = 12


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that can be opened.

    Args:
        node: an image's group, or an array.
        series: its number among series, when the hierarchy has some.
    """

    node: Node
    series: str | None = None

    @property
    def is_labels(self) -> bool:
        """Whether it lies among labels, as NGFF and CellMap place them."""
        return "labels" in self.node.path.split("/")[:-1] or "image-label" in self.node.ome


def locate(path: Path) -> tuple[Tree, str]:
    """The hierarchy that a path belongs to, and where in it.

    A path inside a hierarchy (a label group, one level's array) is opened from the topmost group,
    so that its place among the others is known.
    """
    if path.is_file() and path.name in METADATA_FILES:
        path = path.parent
    if not path.is_dir():
        return open_tree(path), ""
    full = path.resolve()
    top, is_joined = full, True
    for parent in list(full.parents)[:_MAX_DEPTH]:
        if (is_joined and is_hierarchy(parent)) or parent.name.lower().endswith(".zarr"):
            top, is_joined = parent, True
        else:
            is_joined = False
    if top == full:
        # The path as the user wrote it, for messages.
        return open_tree(path), ""
    return open_tree(top), full.relative_to(top).as_posix()


def choose(tree: Tree, inner: str, options: OpenOptions) -> tuple[Node, tuple[Note, ...]]:
    """The image or array that the options mean.

    Raises:
        InputError: when several could be meant, or the one asked for is not there.
        UnreadableFileError: when there is nothing.
    """
    path = inner
    if options.dataset is not None:
        path = posixpath.join(inner, options.dataset.strip("/"))
    node = tree.node(path)
    if node is None:
        raise _absent(tree, inner, f"there is no {options.dataset!r} in {tree.path}")
    if options.series is None and _is_image(node):
        return node, ()
    found = list(candidates(tree, node))
    if options.series is not None:
        return _series(tree, found, options.series), ()
    images = [c for c in found if not c.is_labels] or found
    if len(images) == 1:
        text = f"{images[0].node.path or '/'} is the only image of {len(found)} things in the store"
        return images[0].node, (Note("dataset_chosen", text),) if len(found) > 1 else ()
    if not images:
        raise UnreadableFileError(
            f"{tree.path / path} holds no image and no array of 2 axes or more",
            hint="the store may be incomplete; copy or download it again",
        )
    raise _ambiguous(tree, inner, images)


def candidates(tree: Tree, node: Node) -> Iterator[Candidate]:
    """Everything that can be opened at and below a node, images first found first."""
    if node.kind == "array":
        yield Candidate(node)
        return
    layout = node.attributes.get("bioformats2raw.layout", node.ome.get("bioformats2raw.layout"))
    if layout is not None and not _is_image(node):
        for name in tree.folders(node.path):
            child = tree.node(posixpath.join(node.path, name)) if name.isdecimal() else None
            if child is not None and _is_image(child):
                yield Candidate(child, series=name)
        return
    yield from _walk(tree, node, 0, [_MAX_NODES])


def content_entries(tree: Tree, inner: str) -> tuple[ContentEntry, ...]:
    """What can be chosen below a node; empty when there is just one thing."""
    node = tree.node(inner)
    if node is None:
        return ()
    found = list(candidates(tree, node))
    if len(found) < 2:
        return ()
    entries: list[ContentEntry] = []
    for candidate in found:
        array = _shape_of(tree, candidate.node)
        relative = posixpath.relpath(candidate.node.path or ".", inner or ".")
        entries.append(
            ContentEntry(
                selector="dataset" if candidate.series is None else "series",
                id=candidate.series if candidate.series is not None else relative,
                title=_title(candidate.node),
                shape=array[0],
                dtype=array[1],
                is_image=not candidate.is_labels,
            )
        )
    return tuple(entries)


def _is_image(node: Node) -> bool:
    return node.kind == "array" or bool(_multiscales(node))


def _multiscales(node: Node) -> list[Any]:
    listed = node.ome.get("multiscales")
    return listed if isinstance(listed, list) else []


def _walk(tree: Tree, node: Node, depth: int, budget: list[int]) -> Iterator[Candidate]:
    budget[0] -= 1
    if budget[0] < 0 or depth > _MAX_DEPTH:
        return
    if node.kind == "array":
        if _is_picture(tree, node):
            yield Candidate(node)
        return
    names = tree.folders(node.path)
    if _is_image(node):
        yield Candidate(node)
        # The arrays of its levels are no further images; labels and neighbours may be.
        own = {p.split("/")[0] for d in _multiscales(node) for p in dataset_paths(d)}
        names = [name for name in names if name not in own]
    for name in names:
        child = tree.node(posixpath.join(node.path, name))
        if child is not None:
            yield from _walk(tree, child, depth + 1, budget)


def _is_picture(tree: Tree, node: Node) -> bool:
    shape, dtype = _shape_of(tree, node)
    return len(shape) >= 2 and dtype != ""


def _shape_of(tree: Tree, node: Node) -> tuple[tuple[int, ...], str]:
    """Shape and type of an array or of an image's finest level; empty where they cannot be had."""
    path = node.path
    if node.kind == "group":
        paths = dataset_paths(_multiscales(node)[0])
        if not paths:
            return (), ""
        path = posixpath.join(node.path, paths[0])
    try:
        array = tree.array(path)
    except (InputError, UnreadableFileError):
        return (), ""
    return tuple(int(n) for n in array.shape), str(array.dtype)


def _title(node: Node) -> str:
    listed = _multiscales(node)
    name = listed[0].get("name") if listed and isinstance(listed[0], Mapping) else None
    return str(name) if name else posixpath.basename(node.path) or "image"


def _series(tree: Tree, found: list[Candidate], wanted: str) -> Node:
    for candidate in found:
        if wanted in (candidate.series, candidate.node.path):
            return candidate.node
    if wanted.isdecimal() and int(wanted) < len(found):
        return found[int(wanted)].node
    known = ", ".join(c.series or c.node.path for c in found[:_NAMED])
    raise InputError(
        f"there is no series {wanted!r} in {tree.path}", hint=f"choose one of {known or 'none'}"
    )


def _absent(tree: Tree, inner: str, message: str) -> InputError:
    node = tree.node(inner)
    found = list(candidates(tree, node)) if node is not None else []
    names = [posixpath.relpath(c.node.path or ".", inner or ".") for c in found]
    shown = ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
    return InputError(
        message,
        hint=f"choose one of {shown}" if names else "list what is inside with `lamella info`",
        details={"datasets": names},
    )


def _ambiguous(tree: Tree, inner: str, images: list[Candidate]) -> InputError:
    option = "--series" if images[0].series is not None else "--dataset"
    names = [
        c.series if c.series is not None else posixpath.relpath(c.node.path or ".", inner or ".")
        for c in images
    ]
    shown = ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
    return InputError(
        f"{tree.path / inner} holds {len(names)} images",
        hint=f"choose one with {option}: {shown}",
        details={"datasets": names},
    )
