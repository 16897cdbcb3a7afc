from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskfleet.jobs.storage.list_objects_xml import page_of
from maskfleet.jobs.storage.schemes import open_storage

ODD = (
    *(
        "a b.png",
        "a+b.png",
        "a%20b.png",
        "a&amp;b<c>.png",
        "a'\"b.png",
        "ä/ü.png",
        "日本/語.png",
        "x//y.png",
        "e\u0301.png",
    ),
    *("folder/", "folder/inner/", "~.png", "new\nline.png", "tab\t.png", "😀.png", "-_.!*'().png"),
    "#?=;:@$,[]{}|^`\\.png",
)


def document(
    keys, *, encoded=True, truncated=False, token="", namespace=' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
):
    """Return a ListObjectsV2 response with all the elements of real ones."""
    name = quote_plus if encoded else escape
    folder = "<CommonPrefixes><Prefix>f%2B/</Prefix></CommonPrefixes>"
    body = "".join(
        f"\n  <Contents>\n<Key>{name(key)}</Key><LastModified>2026-11-24T01:02:03.250Z</LastModified>"
        f"<ETag>&quot;e{number}&quot;</ETag><ChecksumAlgorithm>CRC32</ChecksumAlgorithm><Size>{number}</Size>"
        "<Owner><ID>me</ID><DisplayName>Key</DisplayName></Owner><StorageClass>STANDARD</StorageClass></Contents>"
        f"{folder if number == 1 else ''}"
        for number, key in enumerate(keys)
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    kind = "<EncodingType>url</EncodingType>" if encoded else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult{namespace}><Name>b</Name><Prefix></Prefix>{kind}'
        f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{more}{body}</ListBucketResult>"
    ).encode()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=6))
@example(["a b.png"])  # a plus sign is the only encoded character
def test_every_key_survives_the_xml(keys):
    page = page_of(document(keys))
    assert page.objects["path"].to_pylist() == keys
    assert page.objects["etag"].to_pylist() == [f"e{number}" for number in range(len(keys))]
    assert page.objects["size"].to_pylist() == list(range(len(keys)))
    assert set(page.objects["modified"].to_pylist()) <= {1795482123.25}
    assert (page.folders, page.more) == (["f+/"] * (len(keys) > 1), None)


def test_keys_may_come_without_url_encoding():
    keys = [key for key in ODD if key.isprintable()]
    page = page_of(document(keys, encoded=False, namespace=""))
    assert page.objects["path"].to_pylist() == keys
    assert page.folders == ["f%2B/"]


def test_the_continuation_token_is_found():
    assert page_of(document(["a"], truncated=True, token="t+")).more == "t+"
    assert page_of(document(["a"], token="t")).more is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<Size>1</Size>", b""),
        (b"<Size>1</Size>", b"<Size>one</Size>"),
        (b"2026-11-24", b"yesterday "),
        (b"<Key>a</Key>", b"<Key><![CDATA[a]]></Key>"),
        (b"<Key>a</Key>", b"<Key>a&nothing;</Key>"),
        (b"</ListBucketResult>", b""),
        (b"</Contents>", b""),
        (b"ListBucketResult", b"Error"),
        (b"false", b"true"),
    ],
)
def test_an_incomplete_page_is_refused(old, new):
    body = document(["a", "b"])
    assert page_of(body) is not None
    assert old in body
    assert page_of(body.replace(old, new)) is None


@pytest.mark.s3
def test_a_listing_equals_that_of_botocore(bucket, s3_server):
    import boto3

    client, name = boto3.client("s3"), bucket.removeprefix("s3://")
    odd = [key for key in ODD if s3_server != "moto" or "\n" not in key]  # moto cannot route such a key
    for key in odd:
        client.put_object(Bucket=name, Key=key, Body=key.encode())
    theirs = client.list_objects_v2(Bucket=name)["Contents"]
    expected = [
        (item["Key"], item["Size"], item["ETag"].strip('"'), item["LastModified"].timestamp())
        for item in theirs
        if not item["Key"].endswith("/")
    ]
    assert {key for key, *_ in expected} == {key for key in odd if not key.endswith("/")}
    storage = open_storage(bucket)
    assert [tuple(entry) for entry in storage.walk()] == expected
    assert storage.names("") == sorted({key.rstrip("/").split("/")[0] for key in odd})
    assert [entry.path for entry in storage.walk("ä")] == ["ä/ü.png"]
    assert list(storage.walk("none")) == []
    for entry in storage.walk():
        assert storage.read(entry.path, entry.etag) == entry.path.encode()
