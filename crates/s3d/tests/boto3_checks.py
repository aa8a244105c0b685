"""What boto3, an S3 client that is not ours, finds when it works with the server.

Run by tests/boto3.rs with the endpoint, key pair and two bucket names in the environment. Prints one line per check;
a failed check prints why, and the exit status is 1.
"""

import base64
import concurrent.futures
import datetime
import hashlib
import io
import os
import sys
import traceback
import urllib.request
import zlib

import boto3
import botocore
from boto3.s3.transfer import TransferConfig
from botocore.client import Config
from botocore.exceptions import ClientError

ENDPOINT = os.environ["S3_ENDPOINT"]
BUCKET = os.environ["S3_BUCKET"]
OTHER = os.environ["S3_OTHER_BUCKET"]
MIB = 1 << 20


def client(access=os.environ["S3_ACCESS_KEY"], secret=os.environ["S3_SECRET_KEY"], **config):
    return boto3.client(
        "s3",
        endpoint_url=ENDPOINT,
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}, **config),
    )


s3 = client()
checks = []


def check(function):
    checks.append(function)
    return function


def code_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return None


def put(key, body=b"data", **kwargs):
    return s3.put_object(Bucket=BUCKET, Key=key, Body=body, **kwargs)


def get(key, **kwargs):
    return s3.get_object(Bucket=BUCKET, Key=key, **kwargs)["Body"].read()


def keys(**kwargs):
    page = s3.list_objects_v2(Bucket=BUCKET, **kwargs)
    return [entry["Key"] for entry in page.get("Contents", [])], [
        entry["Prefix"] for entry in page.get("CommonPrefixes", [])
    ]


def equal(left, right):
    assert left == right, f"{left!r} != {right!r}"


@check
def buckets_are_listed_and_located():
    equal([bucket["Name"] for bucket in s3.list_buckets()["Buckets"]], sorted([BUCKET, OTHER]))
    s3.head_bucket(Bucket=BUCKET)
    equal(s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"], None)
    assert "Status" not in s3.get_bucket_versioning(Bucket=BUCKET)


@check
def a_bucket_that_is_not_there_says_so():
    equal(code_of(s3.head_bucket, Bucket="missing"), "404")
    equal(code_of(s3.list_objects_v2, Bucket="missing"), "NoSuchBucket")
    equal(code_of(s3.get_object, Bucket="missing", Key="k"), "NoSuchBucket")
    equal(code_of(s3.put_object, Bucket="missing", Key="k", Body=b""), "NoSuchBucket")


@check
def buckets_are_not_created_or_removed_by_clients():
    equal(code_of(s3.create_bucket, Bucket=BUCKET), "BucketAlreadyOwnedByYou")
    equal(code_of(s3.create_bucket, Bucket="new-bucket"), "AccessDenied")
    equal(code_of(s3.delete_bucket, Bucket=BUCKET), "AccessDenied")


@check
def an_object_comes_back():
    answer = put("a/b.txt", b"hello")
    equal(answer["ETag"], '"5d41402abc4b2a76b9719d911017c592"')
    answer = s3.get_object(Bucket=BUCKET, Key="a/b.txt")
    equal(answer["Body"].read(), b"hello")
    equal(answer["ContentLength"], 5)
    equal(answer["ETag"], '"5d41402abc4b2a76b9719d911017c592"')
    equal(answer["AcceptRanges"], "bytes")
    age = datetime.datetime.now(datetime.timezone.utc) - answer["LastModified"]
    assert abs(age.total_seconds()) < 120, age


@check
def an_empty_object_comes_back():
    equal(put("empty", b"")["ETag"], '"d41d8cd98f00b204e9800998ecf8427e"')
    equal(get("empty"), b"")
    equal(s3.head_object(Bucket=BUCKET, Key="empty")["ContentLength"], 0)
    equal(code_of(get, "empty", Range="bytes=0-0"), "InvalidRange")


@check
def odd_keys_come_back():
    odd = ["c", "c/d", "c/", "/lead", "//", "a//b", "a/./b", "a/../b", "..", ".", "100%", "%2F", "a+b c", "ü/ö😀",
           "q?x=1&y=2#z", "'\"<>&", "tab\there", "back\\slash", "~*()!@$,;:=[]{}|^`", "x" * 1024, "é" * 512,
           "/".join("y" * 63 for _ in range(16))]
    for key in odd:
        put("odd/" + key if len(key.encode()) < 1000 else key, key.encode())
    for key in odd:
        equal(get("odd/" + key if len(key.encode()) < 1000 else key), key.encode())
    listed, _ = keys(Prefix="odd/")
    equal(listed, sorted(("odd/" + key for key in odd if len(key.encode()) < 1000), key=lambda key: key.encode()))


@check
def a_key_over_1024_bytes_is_refused():
    equal(code_of(put, "x" * 1025), "KeyTooLongError")


@check
def ranges_are_cut_out():
    put("range", bytes(range(100)))
    for header, start, end in [
        ("bytes=0-9", 0, 10), ("bytes=90-", 90, 100), ("bytes=-5", 95, 100), ("bytes=50-1000", 50, 100),
        ("bytes=99-99", 99, 100), ("bytes=-1000", 0, 100),
    ]:
        answer = s3.get_object(Bucket=BUCKET, Key="range", Range=header)
        equal(answer["Body"].read(), bytes(range(start, end)))
        equal(answer["ContentRange"], f"bytes {start}-{end - 1}/100")
        equal(answer["ResponseMetadata"]["HTTPStatusCode"], 206)
    equal(code_of(get, "range", Range="bytes=100-"), "InvalidRange")
    equal(code_of(get, "range", Range="bytes=-0"), "InvalidRange")


@check
def head_and_get_of_nothing_are_404():
    equal(code_of(s3.head_object, Bucket=BUCKET, Key="nothing"), "404")
    equal(code_of(get, "nothing"), "NoSuchKey")


@check
def metadata_and_headers_come_back():
    expires = datetime.datetime(2031, 5, 6, 7, 8, 9, tzinfo=datetime.timezone.utc)
    put("meta", Metadata={"Name": "Value  two", "empty": "", "n": "1.5"}, ContentType="text/x-test", CacheControl="no-store",
        ContentDisposition='attachment; filename="x"', ContentEncoding="gzip", ContentLanguage="de", Expires=expires)
    for answer in (s3.head_object(Bucket=BUCKET, Key="meta"), s3.get_object(Bucket=BUCKET, Key="meta")):
        equal(answer["Metadata"], {"name": "Value  two", "empty": "", "n": "1.5"})
        equal(answer["ContentType"], "text/x-test")
        equal(answer["CacheControl"], "no-store")
        equal(answer["ContentDisposition"], 'attachment; filename="x"')
        equal(answer["ContentEncoding"], "gzip")
        equal(answer["ContentLanguage"], "de")
        equal(answer["ExpiresString"], "Tue, 06 May 2031 07:08:09 GMT")


@check
def an_object_without_a_type_is_binary():
    put("untyped")
    equal(s3.head_object(Bucket=BUCKET, Key="untyped")["ContentType"], "binary/octet-stream")


@check
def too_much_metadata_is_refused():
    equal(code_of(put, "much", Metadata={"m": "x" * 2100}), "MetadataTooLarge")


@check
def answers_can_be_renamed_and_retyped():
    put("override")
    answer = s3.get_object(Bucket=BUCKET, Key="override", ResponseContentType="text/plain",
                           ResponseContentDisposition="inline", ResponseCacheControl="max-age=1")
    equal((answer["ContentType"], answer["ContentDisposition"], answer["CacheControl"]),
          ("text/plain", "inline", "max-age=1"))


@check
def reads_obey_tags():
    etag = put("tags")["ETag"]
    equal(get("tags", IfMatch=etag), b"data")
    equal(code_of(get, "tags", IfMatch='"other"'), "PreconditionFailed")
    equal(code_of(get, "tags", IfNoneMatch=etag), "304")
    equal(get("tags", IfNoneMatch='"other"'), b"data")
    equal(code_of(s3.head_object, Bucket=BUCKET, Key="tags", IfMatch='"other"'), "412")


@check
def reads_obey_times():
    put("times")
    modified = s3.head_object(Bucket=BUCKET, Key="times")["LastModified"]
    hour = datetime.timedelta(hours=1)
    equal(code_of(get, "times", IfModifiedSince=modified), "304")
    equal(get("times", IfModifiedSince=modified - hour), b"data")
    equal(code_of(get, "times", IfUnmodifiedSince=modified - hour), "PreconditionFailed")
    equal(get("times", IfUnmodifiedSince=modified), b"data")


@check
def writes_obey_conditions():
    s3.delete_object(Bucket=BUCKET, Key="cond")
    etag = put("cond", b"1", IfNoneMatch="*")["ETag"]
    equal(code_of(put, "cond", b"2", IfNoneMatch="*"), "PreconditionFailed")
    equal(code_of(put, "cond", b"2", IfMatch='"other"'), "PreconditionFailed")
    second = put("cond", b"2", IfMatch=etag)["ETag"]
    equal(code_of(put, "cond", b"3", IfMatch=etag), "PreconditionFailed")
    equal(code_of(s3.delete_object, Bucket=BUCKET, Key="cond", IfMatch=etag), "PreconditionFailed")
    s3.delete_object(Bucket=BUCKET, Key="cond", IfMatch=second)
    equal(code_of(get, "cond"), "NoSuchKey")


@check
def one_of_many_creators_wins():
    def create(number):
        return code_of(put, "race", str(number).encode(), IfNoneMatch="*")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(create, range(16)))
    equal(results.count(None), 1)
    equal(get("race"), str(results.index(None)).encode())


@check
def announced_checksums_are_checked():
    body = b"some bytes" * 1000
    sums = {
        "CRC32": base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode(),
        "SHA1": base64.b64encode(hashlib.sha1(body).digest()).decode(),
        "SHA256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
    }
    for name, value in sums.items():
        answer = put("sums", body, **{f"Checksum{name}": value})
        equal(answer[f"Checksum{name}"], value)
        wrong = base64.b64encode(bytes(len(base64.b64decode(value)))).decode()
        equal(code_of(put, "sums", b"wrong", **{f"Checksum{name}": wrong}), "BadDigest")
    equal(get("sums"), body)


@check
def content_md5_is_checked():
    md5 = base64.b64encode(hashlib.md5(b"data").digest()).decode()
    put("md5", ContentMD5=md5)
    equal(code_of(put, "md5", b"other", ContentMD5=md5), "BadDigest")
    equal(code_of(put, "md5", b"other", ContentMD5="no md5"), "InvalidDigest")


@check
def chunked_uploads_with_trailers_arrive():
    # A stream that is not a file makes the client send aws-chunked with a trailing sum.
    for algorithm in ("CRC32", "SHA1", "SHA256"):
        body = os.urandom(300_000)
        put("chunked", io.BytesIO(body), ChecksumAlgorithm=algorithm)
        equal(get("chunked"), body)
    assert "ContentEncoding" not in s3.head_object(Bucket=BUCKET, Key="chunked")


@check
def a_signed_payload_arrives():
    strict = client(request_checksum_calculation="when_required")
    strict.meta.events.register(
        "before-sign.s3", lambda request, **_: request.context.update({"payload_signing_enabled": True}))
    strict.put_object(Bucket=BUCKET, Key="signed", Body=b"signed bytes")
    equal(get("signed"), b"signed bytes")


@check
def a_large_single_put_is_spooled_and_whole():
    body = os.urandom(20 * MIB)
    equal(put("large", body)["ETag"], f'"{hashlib.md5(body).hexdigest()}"')
    equal(hashlib.md5(get("large")).digest(), hashlib.md5(body).digest())


@check
def wrong_credentials_are_refused():
    equal(code_of(client(secret="wrong").list_objects_v2, Bucket=BUCKET), "SignatureDoesNotMatch")
    equal(code_of(client(access="nobody").list_objects_v2, Bucket=BUCKET), "InvalidAccessKeyId")
    anonymous = client(signature_version=botocore.UNSIGNED)
    equal(code_of(anonymous.list_objects_v2, Bucket=BUCKET), "AccessDenied")


@check
def presigned_urls_work():
    put("presigned", b"by url")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "presigned"})
    with urllib.request.urlopen(url) as answer:
        equal(answer.read(), b"by url")


@check
def copies_keep_or_replace():
    put("src/1", b"copy me", Metadata={"a": "1"}, ContentType="text/plain")
    source = {"Bucket": BUCKET, "Key": "src/1"}
    result = s3.copy_object(Bucket=BUCKET, Key="dst/ü 1+", CopySource=source)["CopyObjectResult"]
    answer = s3.head_object(Bucket=BUCKET, Key="dst/ü 1+")
    equal((answer["Metadata"], answer["ContentType"], answer["ETag"]), ({"a": "1"}, "text/plain", result["ETag"]))
    s3.copy_object(Bucket=BUCKET, Key="dst/2", CopySource=source, MetadataDirective="REPLACE", Metadata={"b": "2"})
    answer = s3.get_object(Bucket=BUCKET, Key="dst/2")
    equal((answer["Metadata"], answer["ContentType"]), ({"b": "2"}, "binary/octet-stream"))
    equal(answer["Body"].read(), b"copy me")
    s3.copy_object(Bucket=BUCKET, Key="back", CopySource={"Bucket": BUCKET, "Key": "dst/ü 1+"})
    equal(get("back"), b"copy me")


@check
def a_copy_onto_itself_must_change_something():
    put("self", Metadata={"a": "1"})
    source = {"Bucket": BUCKET, "Key": "self"}
    equal(code_of(s3.copy_object, Bucket=BUCKET, Key="self", CopySource=source), "InvalidRequest")
    s3.copy_object(Bucket=BUCKET, Key="self", CopySource=source, MetadataDirective="REPLACE", Metadata={"a": "2"})
    equal(s3.head_object(Bucket=BUCKET, Key="self")["Metadata"], {"a": "2"})


@check
def copies_obey_conditions_and_cross_buckets():
    etag = put("cross", b"over there", Metadata={"k": "v"})["ETag"]
    source = {"Bucket": BUCKET, "Key": "cross"}
    s3.copy_object(Bucket=OTHER, Key="here", CopySource=source, CopySourceIfMatch=etag)
    answer = s3.get_object(Bucket=OTHER, Key="here")
    equal((answer["Body"].read(), answer["Metadata"]), (b"over there", {"k": "v"}))
    equal(code_of(s3.copy_object, Bucket=BUCKET, Key="no", CopySource=source, CopySourceIfMatch='"x"'),
          "PreconditionFailed")
    equal(code_of(s3.copy_object, Bucket=BUCKET, Key="no", CopySource=source, CopySourceIfNoneMatch=etag),
          "PreconditionFailed")
    equal(code_of(s3.copy_object, Bucket=BUCKET, Key="no", CopySource={"Bucket": BUCKET, "Key": "nothing"}),
          "NoSuchKey")


@check
def removing_is_idempotent():
    put("gone")
    s3.delete_object(Bucket=BUCKET, Key="gone")
    s3.delete_object(Bucket=BUCKET, Key="gone")
    equal(code_of(get, "gone"), "NoSuchKey")


@check
def many_are_removed_at_once():
    names = [f"many/{number:03} &<ü>" for number in range(120)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(put, names))
    wanted = [{"Key": name} for name in names[:100]] + [{"Key": "many/never"}]
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": wanted})
    equal(len(answer["Deleted"]), 101)
    assert "Errors" not in answer
    equal(keys(Prefix="many/")[0], names[100:])
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": n} for n in names[100:]], "Quiet": True})
    assert "Deleted" not in answer and "Errors" not in answer
    equal(keys(Prefix="many/"), ([], []))


LISTED = ["list/a", "list/b/1", "list/b/2", "list/b.txt", "list/c", "list/c/d/e", "list/ü", "list/z z+%"]


def fill_listed():
    for key in LISTED:
        put(key)


@check
def a_listing_is_ordered_and_rolled_up():
    fill_listed()
    equal(keys(Prefix="list/")[0], sorted(LISTED, key=lambda key: key.encode()))
    equal(keys(Prefix="list/", Delimiter="/"),
          (["list/a", "list/b.txt", "list/c", "list/z z+%", "list/ü"], ["list/b/", "list/c/"]))
    equal(keys(Prefix="list/b", Delimiter="/"), (["list/b.txt"], ["list/b/"]))
    equal(keys(Prefix="list/c/"), (["list/c/d/e"], []))
    equal(keys(Prefix="none/"), ([], []))
    equal(keys(Prefix="list/", StartAfter="list/c")[0], ["list/c/d/e", "list/z z+%", "list/ü"])
    entry = s3.list_objects_v2(Bucket=BUCKET, Prefix="list/a")["Contents"][0]
    equal((entry["Size"], entry["StorageClass"], entry["ETag"]),
          (4, "STANDARD", '"8d777f385d3dfec8815d20f7496026dc"'))
    equal(entry["LastModified"], s3.head_object(Bucket=BUCKET, Key="list/a")["LastModified"])


@check
def any_page_length_gives_the_same_listing():
    fill_listed()
    for operation in ("list_objects_v2", "list_objects"):
        for delimiter in ("", "/", "b", "."):
            whole = None
            for size in (1000, 1, 2, 3, 5):
                found = []
                pages = s3.get_paginator(operation).paginate(
                    Bucket=BUCKET, Prefix="list/", Delimiter=delimiter, PaginationConfig={"PageSize": size})
                for page in pages:
                    entries = [e["Key"] for e in page.get("Contents", [])]
                    entries += [e["Prefix"] for e in page.get("CommonPrefixes", [])]
                    assert len(entries) <= size
                    found += entries
                found.sort()
                whole = whole or found
                equal((operation, delimiter, size, found), (operation, delimiter, size, whole))


@check
def page_lengths_at_the_edges():
    fill_listed()
    page = s3.list_objects_v2(Bucket=BUCKET, Prefix="list/", MaxKeys=0)
    equal((page["KeyCount"], page["IsTruncated"]), (0, False))
    page = s3.list_objects_v2(Bucket=BUCKET, Prefix="list/", MaxKeys=5000)
    equal((page["KeyCount"], page["IsTruncated"], page["MaxKeys"]), (len(LISTED), False, 1000))
    page = s3.list_objects_v2(Bucket=BUCKET, Prefix="list/", MaxKeys=len(LISTED))
    equal(page["IsTruncated"], False)
    equal(code_of(s3.list_objects_v2, Bucket=BUCKET, ContinuationToken="%%%"), "InvalidArgument")


@check
def a_multipart_upload_has_the_tag_of_its_parts():
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="mp", Metadata={"m": "p"}, ContentType="text/mp")
    id = upload["UploadId"]
    bodies = [os.urandom(5 * MIB), os.urandom(5 * MIB + 1), b"tail"]
    tags = [s3.upload_part(Bucket=BUCKET, Key="mp", UploadId=id, PartNumber=n, Body=b)["ETag"]
            for n, b in zip((1, 3, 10), bodies)]
    parts = s3.list_parts(Bucket=BUCKET, Key="mp", UploadId=id)["Parts"]
    equal([(p["PartNumber"], p["Size"], p["ETag"]) for p in parts],
          [(n, len(b), t) for n, b, t in zip((1, 3, 10), bodies, tags)])
    page = s3.list_parts(Bucket=BUCKET, Key="mp", UploadId=id, MaxParts=2)
    equal((page["IsTruncated"], page["NextPartNumberMarker"]), (True, 3))
    equal(code_of(get, "mp"), "NoSuchKey")
    answer = s3.complete_multipart_upload(Bucket=BUCKET, Key="mp", UploadId=id, MultipartUpload={
        "Parts": [{"PartNumber": n, "ETag": t} for n, t in zip((1, 3, 10), tags)]})
    expected = hashlib.md5(b"".join(hashlib.md5(b).digest() for b in bodies)).hexdigest()
    equal(answer["ETag"], f'"{expected}-3"')
    answer = s3.get_object(Bucket=BUCKET, Key="mp")
    equal((answer["Metadata"], answer["ContentType"], answer["ETag"]), ({"m": "p"}, "text/mp", f'"{expected}-3"'))
    equal(hashlib.md5(answer["Body"].read()).digest(), hashlib.md5(b"".join(bodies)).digest())
    equal(code_of(s3.list_parts, Bucket=BUCKET, Key="mp", UploadId=id), "NoSuchUpload")


@check
def broken_completions_are_told_apart():
    id = s3.create_multipart_upload(Bucket=BUCKET, Key="mpbad")["UploadId"]
    one, two = [s3.upload_part(Bucket=BUCKET, Key="mpbad", UploadId=id, PartNumber=n, Body=b"small")["ETag"]
                for n in (1, 2)]

    def complete(*parts, key="mpbad", id=id):
        return code_of(s3.complete_multipart_upload, Bucket=BUCKET, Key=key, UploadId=id, MultipartUpload={
            "Parts": [{"PartNumber": n, "ETag": t} for n, t in parts]})

    equal(complete((1, one), (2, two)), "EntityTooSmall")
    equal(complete((2, two), (1, one)), "InvalidPartOrder")
    equal(complete((1, one), (3, two)), "InvalidPart")
    equal(complete((1, '"00000000000000000000000000000000"')), "InvalidPart")
    equal(complete((1, one), id="0123456789abcdef"), "NoSuchUpload")
    equal(complete((1, one), key="otherkey"), "NoSuchUpload")
    equal(code_of(s3.upload_part, Bucket=BUCKET, Key="mpbad", UploadId="../../x", PartNumber=1, Body=b""),
          "NoSuchUpload")
    equal(code_of(s3.upload_part, Bucket=BUCKET, Key="mpbad", UploadId=id, PartNumber=10001, Body=b""),
          "InvalidArgument")
    equal(complete((1, one)), None)
    equal(get("mpbad"), b"small")


@check
def a_replaced_part_counts_last():
    id = s3.create_multipart_upload(Bucket=BUCKET, Key="mprep")["UploadId"]
    s3.upload_part(Bucket=BUCKET, Key="mprep", UploadId=id, PartNumber=1, Body=b"first")
    tag = s3.upload_part(Bucket=BUCKET, Key="mprep", UploadId=id, PartNumber=1, Body=b"second")["ETag"]
    s3.complete_multipart_upload(Bucket=BUCKET, Key="mprep", UploadId=id,
                                 MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]})
    equal(get("mprep"), b"second")


@check
def completion_obeys_conditions():
    put("mpcond")
    id = s3.create_multipart_upload(Bucket=BUCKET, Key="mpcond")["UploadId"]
    tag = s3.upload_part(Bucket=BUCKET, Key="mpcond", UploadId=id, PartNumber=1, Body=b"new")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
    equal(code_of(s3.complete_multipart_upload, Bucket=BUCKET, Key="mpcond", UploadId=id, MultipartUpload=parts,
                  IfNoneMatch="*"), "PreconditionFailed")
    equal(get("mpcond"), b"data")


@check
def parts_are_copied_from_any_range():
    body = os.urandom(6 * MIB)
    put("mpsrc", body)
    id = s3.create_multipart_upload(Bucket=BUCKET, Key="mpcopy")["UploadId"]

    def copy(number, **kwargs):
        return s3.upload_part_copy(Bucket=BUCKET, Key="mpcopy", UploadId=id, PartNumber=number,
                                   CopySource={"Bucket": BUCKET, "Key": "mpsrc"}, **kwargs)["CopyPartResult"]["ETag"]

    tags = [copy(1), copy(2, CopySourceRange=f"bytes=1-{5 * MIB + 2}"), copy(3, CopySourceRange="bytes=7-7")]
    equal(code_of(copy, 4, CopySourceRange=f"bytes=0-{6 * MIB}"), "InvalidArgument")
    equal(code_of(copy, 4, CopySourceIfMatch='"x"'), "PreconditionFailed")
    s3.complete_multipart_upload(Bucket=BUCKET, Key="mpcopy", UploadId=id, MultipartUpload={
        "Parts": [{"PartNumber": n + 1, "ETag": t} for n, t in enumerate(tags)]})
    assert get("mpcopy") == body + body[1:5 * MIB + 3] + body[7:8]


@check
def uploads_are_listed_and_aborted():
    ids = {}
    for key in ("up/a", "up/b", "up/ü +"):
        ids[key] = s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    found = s3.list_multipart_uploads(Bucket=BUCKET, Prefix="up/")["Uploads"]
    equal({upload["Key"]: upload["UploadId"] for upload in found}, ids)
    pages = s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=BUCKET, Prefix="up/", PaginationConfig={"PageSize": 1})
    equal([upload["Key"] for page in pages for upload in page.get("Uploads", [])], sorted(ids))
    for key, id in ids.items():
        s3.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=id)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET, Prefix="up/")
    equal(code_of(s3.upload_part, Bucket=BUCKET, Key="up/a", UploadId=ids["up/a"], PartNumber=1, Body=b""),
          "NoSuchUpload")


@check
def the_transfer_manager_moves_files():
    body = os.urandom(33 * MIB + 7)
    config = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB, max_concurrency=4)
    s3.upload_fileobj(io.BytesIO(body), BUCKET, "managed", Config=config, ExtraArgs={"Metadata": {"x": "y"}})
    target = io.BytesIO()
    s3.download_fileobj(BUCKET, "managed", target, Config=config)
    assert target.getvalue() == body
    s3.copy({"Bucket": BUCKET, "Key": "managed"}, BUCKET, "managed2", Config=config)
    equal(s3.head_object(Bucket=BUCKET, Key="managed2")["ContentLength"], len(body))
    equal(s3.head_object(Bucket=BUCKET, Key="managed2")["Metadata"], {"x": "y"})


@check
def checksums_of_parts_are_kept_apart_from_tags():
    id = s3.create_multipart_upload(Bucket=BUCKET, Key="mpsum", ChecksumAlgorithm="SHA256")["UploadId"]
    part = s3.upload_part(Bucket=BUCKET, Key="mpsum", UploadId=id, PartNumber=1, Body=b"x", ChecksumAlgorithm="SHA256")
    s3.complete_multipart_upload(Bucket=BUCKET, Key="mpsum", UploadId=id, MultipartUpload={"Parts": [
        {"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]}]})
    equal(get("mpsum"), b"x")


@check
def what_is_not_kept_is_refused():
    equal(code_of(put, "sse", ServerSideEncryption="AES256"), "NotImplemented")
    equal(code_of(put, "tagged", Tagging="a=b"), "NotImplemented")
    equal(code_of(s3.put_bucket_policy, Bucket=BUCKET, Policy="{}"), "NotImplemented")


@check
def a_storage_class_is_kept():
    put("class", StorageClass="STANDARD_IA")
    equal(s3.head_object(Bucket=BUCKET, Key="class")["StorageClass"], "STANDARD_IA")
    put("class2", StorageClass="STANDARD")
    assert "StorageClass" not in s3.head_object(Bucket=BUCKET, Key="class2")


def main():
    failed = 0
    for function in checks:
        try:
            function()
            print(f"ok   {function.__name__}")
        except Exception:
            failed += 1
            print(f"FAIL {function.__name__}")
            traceback.print_exc(file=sys.stdout)
    print(f"{len(checks) - failed} of {len(checks)} checks passed")
    return 1 if failed else 0


sys.exit(main())
