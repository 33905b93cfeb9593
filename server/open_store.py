"""The store as the settings have it: for the server, for workers, for commands that need neither.

Here: blob_place, open_store. Not here: what a store is (adapters_store/).
"""

from adapters_store.blob_place import BlobPlace
from adapters_store.store import AdapterStore, UploadLimits
from server.config import Settings, SettingsError


def blob_place(settings: Settings) -> BlobPlace:
    """Where the files rest."""
    return BlobPlace(
        settings.store or str(settings.data_dir / "store"),
        cache=str(settings.data_dir / "store-cache"),
        cache_bytes=settings.store_cache_bytes,
    )


def open_store(settings: Settings, place: BlobPlace) -> AdapterStore:
    """Raises SettingsError (a folder that cannot be written to, a URL that nothing here opens),
    Unavailable, StoreCorrupt."""
    try:
        return AdapterStore(
            settings.data_dir,
            base_name=settings.base_name,
            limits=UploadLimits(max_upload_bytes=settings.max_upload_bytes),
            blobs=place,
            catalog=settings.catalog,
        )
    except OSError as error:
        flag = f"--data-dir {settings.data_dir}"
        if settings.store is not None and str(error.filename).startswith(str(place.folder)):
            flag = f"--store {place}"
        raise SettingsError(
            f"{flag}: {error.filename or 'its catalog'}: {error.strerror}. "
            "Name a folder that this user can write to."
        ) from None
    except ValueError as error:
        raise SettingsError(str(error)) from None
