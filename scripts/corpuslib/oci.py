"""An OCI layout directory: blobs, manifests, an index.json with one entry a tag."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
COMPRESSORS = {"gzip": ["gzip", "-n", "-6", "-c"], "zstd": ["zstd", "-q", "-3", "-T1", "-c"], "tar": None}
MEDIA_TYPES = {"gzip": LAYER + "+gzip", "zstd": LAYER + "+zstd", "tar": LAYER}


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


class Layout:
    """Written below `path`; `finish` puts index.json in place."""

    def __init__(self, path: Path):
        self.path = path
        self.blobs = path / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.tags = []

    def put_file(self, path: Path) -> dict:
        """Moves a file into the layout; its descriptor without media type."""
        digest, size = file_sha256(path), path.stat().st_size
        shutil.move(path, self.blobs / digest.removeprefix("sha256:"))
        return {"digest": digest, "size": size}

    def put_bytes(self, data: bytes) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"digest": "sha256:" + digest, "size": len(data)}

    def put_json(self, document: dict, media_type: str) -> dict:
        return {"mediaType": media_type, **self.put_bytes(json.dumps(document, separators=(",", ":")).encode())}

    def layer(self, tar: Path, encoding: str) -> dict:
        """Stores a tar file in one encoding; the tar stays. Its diffID is under `diff_id`."""
        with tempfile.NamedTemporaryFile(dir=self.path, delete=False) as out:
            if COMPRESSORS[encoding]:
                with open(tar, "rb") as source:
                    subprocess.run(COMPRESSORS[encoding], stdin=source, stdout=out, check=True)
            else:
                with open(tar, "rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
        os.chmod(out.name, 0o644)
        return {"mediaType": MEDIA_TYPES[encoding], **self.put_file(Path(out.name)), "diff_id": file_sha256(tar)}

    def manifest(self, layers: list, architecture="amd64", **config) -> dict:
        """Stores a manifest of layers as `layer` returns them."""
        document = {"created": "2024-01-01T00:00:00Z", "architecture": architecture, "os": "linux",
                    "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                               "Cmd": ["/bin/sh"], "Labels": {"org.example.corpus": "yes"}, **config},
                    "rootfs": {"type": "layers", "diff_ids": [layer["diff_id"] for layer in layers]},
                    "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "corpus"} for _ in layers]}
        return self.put_json({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": self.put_json(document, CONFIG),
            "layers": [{key: layer[key] for key in ("mediaType", "digest", "size")} for layer in layers],
        }, MANIFEST)

    def index(self, manifests: list) -> dict:
        """Stores an index of (architecture, manifest descriptor) pairs."""
        entries = [{**manifest, "platform": {"architecture": architecture, "os": "linux"}}
                   for architecture, manifest in manifests]
        return self.put_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)

    def tag(self, name: str, descriptor: dict):
        self.tags.append({**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}})

    def finish(self):
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self.tags}
        (self.path / "index.json").write_text(json.dumps(document, indent=1))
