"""Puts an export on the Hugging Face Hub, by its own client."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

import dk_bench
from dk_bench.errors import UserError

NOT_KEPT = "see {folder}, which is whole: the same command tries again"


def check_repository(repository: str) -> None:
    """Raises UserError where a repository's name is none, or there is no token to log in with: before any work."""
    try:
        validate_repo_id(repository)
        owner, *rest = repository.split("/")
        if not owner or len(rest) != 1:
            raise ValueError("there is no owner before a slash")
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--push {repository}: expected OWNER/NAME, as the hub has it: {reason}") from error
    if not get_token():
        raise UserError(f"--push {repository}: no token for the hub; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str, *, private: bool = False, stale: Iterable[str] = ()) -> str:
    """Uploads a folder as one commit of a repository, which is made where there is none, and returns its address.

    ``private`` is for one that is made; without a token of the user's nothing is sent. Of ``stale``, names of files,
    those that the repository has and the folder has not are removed by the same commit.

    Raises UserError where the hub cannot be reached or refuses: then the repository is as it was, but may be new.
    """
    check_repository(repository)
    api = HfApi(library_name="dk_bench", library_version=dk_bench.__version__)
    try:
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        gone = [name for name in stale if not (folder / name).exists()]
        message = f"A model exported by dk_bench {dk_bench.__version__}"
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message=message, delete_patterns=gone or None
        )
    # The last of them are the HTTP library's own, which is another one in other versions of the client.
    except (OfflineModeIsEnabled, HfHubHTTPError, HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = _words(error)
        raise UserError(f"--push {repository}: {reason}; {NOT_KEPT.format(folder=folder)}") from error
    return str(made)


def _words(error: Exception) -> str:
    """Returns what went wrong in a line; of the hub's answers what they say, without what the client adds."""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        said = error.server_message or error.response.reason_phrase
        return f"the hub answers {error.response.status_code} ({' '.join(str(said).split())})"
    text = " ".join(str(error).split())[:300]
    return f"the hub cannot be reached: {text}" if isinstance(error, HTTPError | OSError) else text
