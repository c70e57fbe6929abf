"""Container images without a daemon: reproducible layers and OCI archives. Used by hack/image."""

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest(content):
    """Returns the digest of bytes as OCI writes it."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Tree:
    """The entries of an archive, owned by root and with one time. Parent directories are added."""

    def __init__(self, epoch):
        self.epoch = epoch
        self.entries = {}

    def _add(self, path, entry):
        path = path.strip("/")
        parent = os.path.dirname(path)
        if parent and parent not in self.entries:
            self.directory(parent)
        if self.entries.setdefault(path, entry) != entry:
            raise SystemExit(f"image: two different files would be /{path}")

    def directory(self, path):
        """Adds an empty directory."""
        self._add(path, (tarfile.DIRTYPE, 0o755, b""))

    def link(self, path, target):
        """Adds a symbolic link."""
        self._add(path, (tarfile.SYMTYPE, 0o777, target))

    def text(self, path, content):
        """Adds a file with this text."""
        self._add(path, (tarfile.REGTYPE, 0o644, content.encode()))

    def file(self, path, source):
        """Adds a copy of a file. Of its mode only the right to execute is kept."""
        mode = 0o755 if os.stat(source).st_mode & stat.S_IXUSR else 0o644
        self._add(path, (tarfile.REGTYPE, mode, Path(source).read_bytes()))

    def blob(self, path, content):
        """Adds a file with these bytes."""
        self._add(path, (tarfile.REGTYPE, 0o644, content))

    def tar(self):
        """Returns the archive, which depends on nothing but the entries and their time."""
        output = io.BytesIO()
        with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path, (kind, mode, content) in sorted(self.entries.items()):
                entry = tarfile.TarInfo(path)
                entry.type, entry.mode, entry.mtime = kind, mode, self.epoch
                if kind == tarfile.SYMTYPE:
                    entry.linkname = content
                    archive.addfile(entry)
                else:
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        return output.getvalue()

    def unpack(self, folder):
        """Writes the entries into a folder."""
        with tarfile.open(fileobj=io.BytesIO(self.tar())) as archive:
            archive.extractall(folder)


def compressed(content):
    """Returns gzip's output without a name and a time."""
    output = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=output, mtime=0) as file:
        file.write(content)
    return output.getvalue()


def document(value):
    """Returns JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def archive(layers, config, annotations, name, epoch):
    """Returns an OCI archive, the digest of its manifest and the sizes of its compressed layers.

    `layers` are pairs of a comment and a Tree, the lowest first. `config` is the configuration of
    containers and the platform, to which the layers are added.
    """
    layout = Tree(epoch)

    def blob(media_type, content):
        layout.blob("blobs/sha256/" + digest(content).removeprefix("sha256:"), content)
        return {"mediaType": media_type, "digest": digest(content), "size": len(content)}

    plain = [tree.tar() for _, tree in layers]
    packed = [compressed(layer) for layer in plain]
    config = config | {
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in plain]},
        "history": [{"created": config["created"], "created_by": comment} for comment, _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(CONFIG, document(config)),
        "layers": [blob(LAYER, layer) for layer in packed],
        "annotations": annotations,
    }
    descriptor = blob(MANIFEST, document(manifest))
    # containerd reads the whole name from the first annotation, other tools the tag from the second.
    descriptor["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    descriptor["platform"] = {"architecture": config["architecture"], "os": config["os"]}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}
    layout.blob("index.json", document(index))
    layout.text("oci-layout", '{"imageLayoutVersion":"1.0.0"}')
    return layout.tar(), descriptor["digest"], [len(layer) for layer in packed]
