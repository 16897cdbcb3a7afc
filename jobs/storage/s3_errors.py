"""Failed S3 requests as errors of this package. The libraries below each raise their own types."""

from maskfleet.jobs.errors import Changed, Denied, NotFound, StorageError

_RETRYABLE = {
    *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed", "Throttling"),
    *("ConditionalRequestConflict", "OperationAborted", "BadDigest", "IncompleteBody", "500", "502", "503", "504"),
}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_CREDENTIALS = {
    *("AccessDenied", "403", "401", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"),
    *_EXPIRED,
}


def final_error(error: BaseException, url: str) -> StorageError | None:
    """Return the error to raise for a failed request, or None if a retry can help.

    Args:
        error: Exception of s3fs, botocore, aiohttp or the operating system.
        url: URL of the object.
    """
    code = _code(error)
    if code in {"PreconditionFailed", "412"}:
        return Changed(f"{url} changed after planning; run the job again to process the new version")
    if code == "NoSuchBucket":
        return Denied(f"{url}: there is no such bucket; create it, or correct the name and AWS_ENDPOINT_URL_S3")
    if code in _MISSING or (code is None and isinstance(error, FileNotFoundError)):
        return NotFound(f"there is no object {url}")
    if code in _CREDENTIALS or (code is None and isinstance(error, PermissionError)):
        return Denied(f"{url}: access denied ({code}); check the credentials and their permissions")
    if "Credential" in type(error).__name__ or type(error).__name__ == "ProfileNotFound":
        return Denied(
            f"{url}: no usable AWS credentials ({summary(error)}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or name a profile in the job"
        )
    if code in _RETRYABLE or _is_transport(error):
        return None
    return StorageError(f"{url}: {summary(error)}")


def is_expired(error: BaseException) -> bool:
    """Return whether the credentials have expired, so that new ones can help."""
    return _code(error) in _EXPIRED


def _code(error: BaseException | None) -> str | None:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code"))
        error = error.__cause__
    return None


_TRANSPORT = {
    *("EndpointConnectionError", "ConnectionClosedError", "ReadTimeoutError", "ConnectTimeoutError", "HTTPClientError"),
    *("IncompleteReadError", "ResponseStreamingError", "ConnectionError", "ClientPayloadError", "ClientError"),
    *("FSTimeoutError", "TimeoutError", "ResponseParserError", "SSLError"),
}


def _is_transport(error: BaseException | None) -> bool:
    while error is not None:
        if any(kind.__name__ in _TRANSPORT for kind in type(error).__mro__) and _code(error) is None:
            return True
        error = error.__cause__
    return False


def summary(error: BaseException) -> str:
    """Return the type and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
