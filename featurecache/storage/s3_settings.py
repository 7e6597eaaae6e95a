"""How S3 is reached from here: credentials, region and endpoint, as the AWS tools have them.

obstore itself knows environment variables and the metadata service of a cloud machine. botocore
adds what people also use: profiles, ~/.aws, single sign-on, assumed roles.
"""

from __future__ import annotations

import datetime
from typing import Any

from featurecache.errors import MissingExtra
from featurecache.text import one_line

# botocore renews credentials that end within 15 minutes: what it gives is good for this long.
_LIFETIME = datetime.timedelta(minutes=10)


def settings(region: str = "") -> dict[str, Any]:
    """The arguments for obstore's S3 store; `region` overrides the one that is set.

    Raises MissingExtra, PermissionError where no credentials are found.
    """
    session, endpoint = _session()
    found: dict[str, Any] = {"credential_provider": _Credentials(session)}
    region = region or session.get_config_variable("region")
    return found | {
        name: value for name, value in (("region", region), ("endpoint", endpoint)) if value
    }


def region_of(url: str) -> str:
    """The region of the bucket of an s3:// URL, which S3 tells even to those it does not let in."""
    from botocore.exceptions import ClientError

    session, endpoint = _session()
    client = session.create_client("s3", endpoint_url=endpoint, region_name="us-east-1")
    bucket = url.partition("://")[2].partition("/")[0]
    try:
        reply = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        reply = error.response
    finally:
        client.close()
    return str(reply["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", ""))


def _session() -> tuple[Any, str | None]:
    """botocore's session and the endpoint that is set for S3, if one is."""
    try:
        from botocore.configprovider import ConfiguredEndpointProvider
        from botocore.exceptions import BotoCoreError
        from botocore.session import get_session
    except ModuleNotFoundError as error:
        raise MissingExtra("s3://", "botocore", "s3") from error
    session = get_session()
    try:
        scoped = session.get_scoped_config()
        endpoint = ConfiguredEndpointProvider(session.full_config, scoped, "s3").provide()
    except BotoCoreError as error:  # an unknown profile, a file that can't be parsed
        raise PermissionError(one_line(error)) from error
    return session, endpoint


class _Credentials:
    """What obstore calls for credentials, and calls again before they expire."""

    def __init__(self, session: Any) -> None:
        from botocore.exceptions import BotoCoreError

        try:
            self._found = session.get_credentials()
        except BotoCoreError as error:
            raise PermissionError(one_line(error)) from error
        if self._found is None:
            raise PermissionError("no credentials found")

    def __call__(self) -> dict[str, Any]:
        frozen = self._found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.datetime.now(datetime.UTC) + _LIFETIME,
        }
