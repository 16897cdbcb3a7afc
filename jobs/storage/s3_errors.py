"""Failed S3 requests as errors of this package. The libraries below each raise their own types."""

import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from maskfleet.jobs.errors import Changed, Denied, JobError, MaskfleetError, NotFound, StorageError, unsigned
from maskfleet.jobs.storage.contract import DeniedObject, Fault

_REACHING_SECONDS = 3.0
_REACHING_PAUSES = (0.0, 0.5, 1.5)
"""Pauses before the tries to reach a server: it may be restarting."""

_RETRYABLE = {
    *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException"),
    *("TooManyRequests", "429", "ConditionalRequestConflict", "OperationAborted", "BadDigest", "IncompleteBody"),
    *("500", "502", "503", "504", "408"),
}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_CREDENTIALS = {
    *("401", "Unauthorized", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"),
    *("AllAccessDisabled", "AccountProblem", "NotSignedUp"),
    *_EXPIRED,
}
"""The credentials are refused whatever is asked for."""

_DENIED = {"AccessDenied", "403", "Forbidden"}
_REGION = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_UNCONDITIONAL = {"NotImplemented", "501", "MethodNotAllowed", "405"}

_OF_ONE_OBJECT = {
    "InvalidObjectState": "it is archived (Glacier); restore it first",
    "InvalidRange": "it is shorter than planned; run the job again",
    "416": "it is shorter than planned; run the job again",
    "KeyTooLongError": "its name is too long; rename it",
    "InvalidRequest": "it is encrypted with a key of its owner (SSE-C); copy it without one",
}
_KMS = "its KMS key refuses; enable the key, or grant kms:Decrypt"


def final_error(error: BaseException, url: str, *, reads: bool = False) -> StorageError | None:
    """Return the error to raise for a failed request, or None if a retry can help.

    Args:
        error: Exception of s3fs, botocore, aiohttp or the operating system.
        url: URL of the object.
        reads: Whether the request reads one object, so that a refusal may be that object's own.
    """
    code = code_of(error)
    if code is None:
        return _without_answer(error, url, reads=reads)
    if code in {"PreconditionFailed", "412"}:
        return Changed(f"{url} changed after planning; run the job again to process the new version")
    if code == "NoSuchBucket":
        text = f"{url}: there is no such bucket; create it, or correct the name and AWS_ENDPOINT_URL_S3"
        return NotFound(text) if reads else Denied(text)
    if code in _MISSING:
        return NotFound(f"there is no object {url}")
    if code == "RequestTimeTooSkewed":
        return Denied(f"{url}: the clock of this machine differs from the server's{_skew(error)}; set it (NTP)")
    if code in _REGION:
        return Denied(f"{url}: {_region(error)}")
    if code in _CREDENTIALS:
        return Denied(f"{url}: access denied ({code}); check the credentials and their permissions")
    if code in _DENIED:
        if reads:
            return DeniedObject(f"{url}: access denied ({code}), or there is no such object; grant s3:GetObject on it")
        return Denied(f"{url}: access denied ({code}); check the credentials and their permissions")
    if code in _RETRYABLE or (_status(error) >= 500 and code not in _UNCONDITIONAL):
        return None
    if reads:
        reason = _KMS if code.startswith("KMS.") else _OF_ONE_OBJECT.get(code, "copy it anew, or leave it out")
        return Fault("refused", f"{url}: the server refuses this object ({code}): {reason}")
    return StorageError(f"{url}: the server refuses the request ({code}); ask its operator, or use another place")


def is_expired(error: BaseException) -> bool:
    """Return whether the credentials have expired, so that new ones can help."""
    return code_of(error) in _EXPIRED


def refuses_condition(error: StorageError) -> bool:
    """Return whether a conditional write failed because the server knows no conditions, and says so."""
    return code_of(error.__cause__) in _UNCONDITIONAL


def misdirected(url: str, endpoint: str, *, seconds: float) -> StorageError | None:
    """Return the error for an `http://` endpoint on a port that speaks TLS, else None. Asks the port.

    Args:
        url: URL of the object.
        endpoint: URL of the server.
        seconds: Time limit.
    """
    host = urlsplit(endpoint)
    if host.scheme != "http" or host.hostname is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host.hostname, host.port or 80), seconds) as plain, context.wrap_socket(plain):
            return Denied(f"{url}: {endpoint} speaks https; correct AWS_ENDPOINT_URL_S3")
    except (OSError, ValueError):
        return None


def code_of(error: BaseException | None) -> str | None:
    """Return the code in the server's answer, or None without an answer."""
    code = _answer(error).get("Code")
    return None if code is None else str(code)


def unreachable(url: str, endpoint: str) -> MaskfleetError | None:
    """Return the error for a server whose address is wrong or at which nothing listens, else None. Asks the port.

    A proxy is left to answer for itself.

    Args:
        url: URL of the storage.
        endpoint: URL of the server.
    """
    host = urlsplit(endpoint)
    if host.scheme not in ("http", "https") or not host.hostname:
        return JobError(f"{url}: the server {endpoint!r} is no URL; write http(s)://HOST:PORT in AWS_ENDPOINT_URL_S3")
    if host.scheme in getproxies() and not proxy_bypass(host.hostname):
        return None
    error: Exception | None = None
    for pause in _REACHING_PAUSES:
        time.sleep(pause)
        try:
            port = host.port or (443 if host.scheme == "https" else 80)
            socket.create_connection((host.hostname, port), _REACHING_SECONDS).close()
        except (OSError, ValueError) as refusal:
            error = refusal
        else:
            return None
    place = unsigned(endpoint)
    unknown = isinstance(error, socket.gaierror)
    problem = f"there is no host {host.hostname}" if unknown else f"nothing answers at {place}"
    return StorageError(f"{url}: {problem}; correct AWS_ENDPOINT_URL_S3, or start the server")


def reason(error: BaseException) -> str:
    """Return why a request got no answer of use, in words for people."""
    if code := code_of(error):
        return f"the server answers {code}"
    names = {kind.__name__ for cause in _chain(error) for kind in type(cause).__mro__}
    return next((words for name, words in _REASONS.items() if name in names), "no valid answer")


def _without_answer(error: BaseException, url: str, *, reads: bool) -> StorageError | None:
    for cause in _chain(error):
        if (text := _certificate(cause)) is not None:
            return Denied(f"{url}: {text}")
        if isinstance(cause, RecursionError):  # botocore follows redirects without end
            return Denied(f"{url}: {_region(error)}")
        name = type(cause).__name__
        if "Credential" in name or name in {"ProfileNotFound", "TokenRetrievalError", "SSOTokenLoadError"}:
            return Denied(
                f"{url}: no usable AWS credentials ({reason(error)}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, name a profile in the job, or read a public bucket with input_options.anonymous"
            )
        if name == "ParamValidationError" or isinstance(cause, UnicodeError):
            text = f"{url}: this is no name that a bucket or an object can have; correct it"
            return NotFound(text) if reads else StorageError(text)
    if isinstance(error, FileNotFoundError):
        return NotFound(f"there is no object {url}")
    if isinstance(error, PermissionError):
        return Denied(f"{url}: access denied; check the credentials and their permissions")
    if any(kind.__name__ in _TRANSPORT for cause in _chain(error) for kind in type(cause).__mro__):
        return None
    return StorageError(f"{url}: the request failed ({reason(error)}); correct the environment of AWS")


def _certificate(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in text:
        if "expired" in text:
            return "the server's certificate has expired; renew it"
        if "mismatch" in text or "not valid for" in text:
            return "the server's certificate is for another name; correct AWS_ENDPOINT_URL_S3"
        return "the server's certificate has an unknown authority; name the authority's file in AWS_CA_BUNDLE"
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
        return "the server speaks http on this port; write http:// in AWS_ENDPOINT_URL_S3"
    return None


def _skew(error: BaseException) -> str:
    answer = _answer(error)
    here, there = answer.get("RequestTime"), answer.get("ServerTime")
    return f" ({here} here, {there} there)" if here and there else ""


def _region(error: BaseException) -> str:
    region = _answer(error).get("Region")
    for response in _responses(error):
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = region or headers.get("x-amz-bucket-region")
    if region:
        return f"the bucket lies in the region {region}; set AWS_DEFAULT_REGION={region}"
    return "the bucket lies in another region or at another endpoint; set AWS_DEFAULT_REGION or AWS_ENDPOINT_URL_S3"


def _answer(error: BaseException | None) -> dict[str, Any]:
    for response in _responses(error):
        if "Error" in response:
            answer: dict[str, Any] = response["Error"]
            return answer
    return {}


def _status(error: BaseException) -> int:
    for response in _responses(error):
        if status := response.get("ResponseMetadata", {}).get("HTTPStatusCode"):
            return int(status)
    return 0


def _responses(error: BaseException | None) -> Iterator[dict[str, Any]]:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            yield response
        error = error.__cause__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


_REASONS = {
    "NoCredentialsError": "none are set",
    "PartialCredentialsError": "they are incomplete",
    "ProfileNotFound": "there is no such profile",
    "TokenRetrievalError": "the login has expired; run aws sso login",
    "SSOTokenLoadError": "the login has expired; run aws sso login",
    "gaierror": "there is no such host",
    "ConnectTimeoutError": "no connection in time",
    "ReadTimeoutError": "no answer in time",
    "TimeoutError": "no answer in time",
    "FSTimeoutError": "no answer in time",
    "ConnectionRefusedError": "the connection is refused",
    "EndpointConnectionError": "the connection is refused",
    "IncompleteReadError": "the answer breaks off",
    "ClientPayloadError": "the answer breaks off",
    "ResponseStreamingError": "the answer breaks off",
    "ConnectionError": "the connection breaks off",
    "ConnectionClosedError": "the connection breaks off",
}
"""Words for the types of the libraries below, the most telling first."""

_TRANSPORT = {
    *("EndpointConnectionError", "ConnectionClosedError", "ReadTimeoutError", "ConnectTimeoutError", "HTTPClientError"),
    *("IncompleteReadError", "ResponseStreamingError", "ConnectionError", "ClientPayloadError", "ClientError"),
    *("FSTimeoutError", "TimeoutError", "ResponseParserError", "SSLError"),
}
