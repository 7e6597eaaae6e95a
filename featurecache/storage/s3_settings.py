"""Settings of S3: credentials, region and endpoint, from the same sources as the AWS tools.

obstore itself reads environment variables and the metadata service of a cloud machine. botocore
adds profiles, ~/.aws, single sign-on and assumed roles.
"""

from __future__ import annotations

import datetime
from typing import Any

from featurecache.errors import MissingExtra
from featurecache.text import one_line

# botocore renews credentials that expire within 15 minutes, so all are valid for this long.
_LIFETIME = datetime.timedelta(minutes=10)


def settings(region: str = "") -> dict[str, Any]:
    """The arguments for obstore's S3 store; `region` overrides the configured one.

    Raises MissingExtra, PermissionError where no credentials are found.
    """
    session, endpoint = _session()
    optional = {"region": region or session.get_config_variable("region"), "endpoint": endpoint}
    return {
        "credential_provider": _Credentials(session),
        **{name: value for name, value in optional.items() if value},
    }


def region_of(url: str) -> str:
    """The region of the bucket of an s3:// URL. S3 sends it even where access is denied."""
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
    """botocore's session, and the endpoint that is configured for S3, or None."""
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
    """The credentials of a session. obstore calls this, and again before they expire."""

    def __init__(self, session: Any) -> None:
        from botocore.exceptions import BotoCoreError

        try:
            self._credentials = session.get_credentials()
        except BotoCoreError as error:
            raise PermissionError(one_line(error)) from error
        if self._credentials is None:
            raise PermissionError("no credentials found")

    def __call__(self) -> dict[str, Any]:
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.datetime.now(datetime.UTC) + _LIFETIME,
        }
