"""Checkpoints in a bucket: `PREFIX/NAME/FILE`, the manifest last when kept, first when removed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from finetooth_hooks import StoreError
from finetooth_toolbox.files.manifests import (
    LARGEST,
    LONGEST,
    MANIFEST,
    ListedFile,
    ManifestProblem,
    check_name,
    folder_files,
    is_name,
    listed_files,
    read_manifest,
)

from finetooth_objects.bucket import Bucket
from finetooth_objects.checksums import Digests, digests
from finetooth_objects.download import download, read
from finetooth_objects.options import S3Options, address
from finetooth_objects.upload import Uploader, abort


class ObjectStore:
    """`checkpoints.Store` over a bucket.

    Args:
        bucket: where checkpoints lie.
        options: of the store.
    """

    def __init__(self, bucket: Bucket, options: S3Options) -> None:
        self._bucket = bucket
        self._part_bytes = options.part_bytes
        self._uploader = Uploader(bucket, retries=options.retries, read_back=options.read_back)

    @property
    def place(self) -> str:
        """`s3://BUCKET/PREFIX`."""
        return str(self._bucket.address)

    def names(self) -> list[str]:
        """Prefixes with a manifest."""
        prefixes = self._bucket.folders(self._bucket.address.prefix)
        return [name for name in prefixes if is_name(name) and self._bucket.head(self._key(name, MANIFEST)) is not None]

    def manifest(self, name: str) -> bytes:
        """The content of its `manifest.json`.

        Raises:
            StoreError: no checkpoint has this name, or the server does not answer.
        """
        self._check_name(name)
        return read(self._bucket, self._key(name, MANIFEST), LONGEST)

    def put(self, name: str, folder: Path) -> None:
        """Send a folder, the manifest last. Files that are there already are not sent again, and an upload in parts
        that was cut resumes with the parts that are missing, from whatever process.

        Raises:
            StoreError: the folder is not as its manifest says, there is another checkpoint of this name, or it cannot
                be sent.
        """
        self._check_name(name)
        manifest, files = self._read_folder(name, folder)
        key = self._key(name, MANIFEST)
        is_kept = self._bucket.head(key) is not None
        if is_kept and self.manifest(name) != manifest:
            raise StoreError(
                self.place, f"{name} cannot be kept: another checkpoint of this name is", action="remove that one first"
            )
        for path, file in files.items():
            self._uploader.put(self._key(name, path), folder / path, file)
        try:
            self._uploader.put(key, folder / MANIFEST, digests(folder / MANIFEST, LONGEST))
        except StoreError:
            if not is_kept:  # a damaged one may lie there now, and would name what did not get through
                with suppress(StoreError):
                    self._delete(key)
            raise

    def fetch(self, name: str, folder: Path) -> None:
        """Copy the files that the manifest lists into `folder`, each compared with its SHA-256, the manifest last.

        Raises:
            StoreError: it is not there, does not arrive whole, or `folder` cannot be written.
        """
        manifest = self.manifest(name)
        try:
            for path, listed in listed_files(manifest).items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                download(
                    self._bucket,
                    self._key(name, path),
                    target,
                    sha256=listed.sha256,
                    size=listed.size,
                    largest=LARGEST,
                )
            (folder / MANIFEST).write_bytes(manifest)
        except ManifestProblem as error:
            raise StoreError(self.place, f"{name}: {error}", action="use another checkpoint") from error
        except OSError as error:
            problem = f"{name} cannot be written to {folder}: {error.strerror or error}"
            raise StoreError(self.place, problem, action="make room") from error

    def remove(self, name: str) -> None:
        """Take out the manifest, then the rest, then what is left of uploads that were cut.

        Raises:
            StoreError: the server refuses or does not answer.
        """
        self._check_name(name)
        self._delete(self._key(name, MANIFEST))
        for key in list(self._bucket.keys(self._key(name, ""))):
            self._delete(key)
        for upload in self._bucket.uploads(self._key(name, "")):
            abort(self._bucket, upload["Key"], upload["UploadId"])

    def _delete(self, key: str) -> None:
        self._bucket.tell(f"removing {key}", "delete_object", Key=key)

    def _key(self, name: str, path: str) -> str:
        return f"{self._bucket.address.prefix}{name}/{path}"

    def _check_name(self, name: str) -> None:
        try:
            check_name(name)
        except ManifestProblem as error:
            raise StoreError(self.place, str(error)) from error

    def _read_folder(self, name: str, folder: Path) -> tuple[bytes, dict[str, Digests]]:
        """Its manifest, and its files in parts; all of them compared with the manifest before anything is sent."""
        try:
            manifest = read_manifest(folder)
            listed, files = listed_files(manifest), folder_files(folder)
            if odd := sorted(listed.keys() ^ files.keys()):
                where = "missing" if odd[0] in listed else f"not in {MANIFEST}"
                raise ManifestProblem(f"{odd[0]} is {where}")
            return manifest, {path: self._digests(path, files[path], listed[path]) for path in listed}
        except ManifestProblem as error:
            raise StoreError(self.place, f"{name} cannot be kept: {error}") from error
        except OSError as error:
            raise StoreError(self.place, f"{name} cannot be kept: {error.strerror or error}") from error

    def _digests(self, path: str, file: Path, listed: ListedFile) -> Digests:
        parts = digests(file, self._part_bytes)
        if parts.sha256.hex() != listed.sha256:
            raise ManifestProblem(f"{path} differs from its SHA-256 in {MANIFEST}")
        if listed.size is not None and parts.size != listed.size:
            raise ManifestProblem(f"{path} has {parts.size} bytes instead of {listed.size}")
        return parts


def build(options: S3Options) -> ObjectStore:
    """Builder of the store `s3`. The server is not asked for anything yet.

    Raises:
        RecipeError: the address or the endpoint is none.
        StoreError: the profile is not there.
    """
    return ObjectStore(Bucket(address(options.url), options), options)
