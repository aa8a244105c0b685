"""S3 clients in a sandbox, unmodified, with what its environment says and nothing else.

    proxy_inside.py JSON

`targets` of the argument are lists of a name, an endpoint, a bucket and a key prefix; `large` is the length in bytes of the
largest object. Prints a line for each check, and `all N checks passed` at the end.
"""

import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

# Nothing but the environment of the sandbox may tell a client anything.
os.environ["HOME"] = tempfile.mkdtemp()

import boto3
import botocore.exceptions
import duckdb
import duckdb_extension_httpfs
import minio
import minio.commonconfig
import minio.deleteobjects
import pyarrow
import pyarrow.fs
import pyarrow.parquet
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

ASKED = json.loads(sys.argv[1])
LARGE = ASKED["large"]
MIB = 1 << 20
passed = 0


def check(what, found, wanted=True):
    global passed
    if found != wanted:
        raise SystemExit(f"FAILED {what}: {str(found)[:600]!r} is not {str(wanted)[:600]!r}")
    passed += 1


def content(length, seed=1):
    block = hashlib.shake_256(str(seed).encode()).digest(MIB)
    return (block * (length // MIB + 1))[:length]


def refused(what, call, *codes):
    try:
        call()
    except botocore.exceptions.ClientError as error:
        check(what, error.response["Error"]["Code"] in codes or error.response["Error"]["Code"])
    else:
        raise SystemExit(f"FAILED {what}: it was done")


def with_boto3(endpoint, bucket, prefix):
    for style in ["when_supported", "when_required"]:
        for addressing in ["path", "auto"] if endpoint.endswith("//s3.internal") else ["path"]:
            config = Config(request_checksum_calculation=style, response_checksum_validation=style, s3={"addressing_style": addressing}, retries={"max_attempts": 1})
            s3 = boto3.client("s3", endpoint_url=endpoint, config=config)
            at = f"{prefix}boto3-{style}-{addressing}/"
            data = content(100_000)
            s3.put_object(Bucket=bucket, Key=at + "a b+c%é", Body=data, ContentType="text/plain", Metadata={"who": "boto3"})
            got = s3.get_object(Bucket=bucket, Key=at + "a b+c%é")
            check("get", got["Body"].read(), data)
            check("its type and metadata", (got["ContentType"], got["Metadata"]), ("text/plain", {"who": "boto3"}))
            check("range", s3.get_object(Bucket=bucket, Key=at + "a b+c%é", Range="bytes=10-19")["Body"].read(), data[10:20])
            check("head", s3.head_object(Bucket=bucket, Key=at + "a b+c%é")["ContentLength"], len(data))
            refused("get if none match", lambda: s3.get_object(Bucket=bucket, Key=at + "a b+c%é", IfNoneMatch=got["ETag"]), "304")
            refused("get of nothing", lambda: s3.get_object(Bucket=bucket, Key=at + "none"), "NoSuchKey")
            refused("head of nothing", lambda: s3.head_object(Bucket=bucket, Key=at + "none"), "404")
            s3.put_object(Bucket=bucket, Key=at + "empty", Body=b"")
            check("empty", s3.get_object(Bucket=bucket, Key=at + "empty")["Body"].read(), b"")
            s3.put_object(Bucket=bucket, Key=at + "dir/", Body=b"")
            check("a directory's marker", s3.head_object(Bucket=bucket, Key=at + "dir/")["ContentLength"], 0)
            s3.upload_fileobj(io.BytesIO(content(LARGE)), bucket, at + "large", Config=TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB, max_concurrency=4))
            large = io.BytesIO()
            s3.download_fileobj(bucket, at + "large", large)
            check("a multipart upload", hashlib.sha256(large.getbuffer()).digest(), hashlib.sha256(content(LARGE)).digest())
            s3.copy_object(Bucket=bucket, Key=at + "copy", CopySource={"Bucket": bucket, "Key": at + "a b+c%é"})
            check("copy", s3.get_object(Bucket=bucket, Key=at + "copy")["Body"].read(), data)
            upload = s3.create_multipart_upload(Bucket=bucket, Key=at + "parts")["UploadId"]
            check("uploads", [one["Key"] for one in s3.list_multipart_uploads(Bucket=bucket, Prefix=at).get("Uploads", [])], [at + "parts"])
            part = s3.upload_part_copy(Bucket=bucket, Key=at + "parts", UploadId=upload, PartNumber=1, CopySource={"Bucket": bucket, "Key": at + "large"}, CopySourceRange=f"bytes=0-{6 * MIB - 1}")
            last = s3.upload_part(Bucket=bucket, Key=at + "parts", UploadId=upload, PartNumber=2, Body=b"the end")
            check("parts", [one["PartNumber"] for one in s3.list_parts(Bucket=bucket, Key=at + "parts", UploadId=upload)["Parts"]], [1, 2])
            parts = [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}, {"PartNumber": 2, "ETag": last["ETag"]}]
            s3.complete_multipart_upload(Bucket=bucket, Key=at + "parts", UploadId=upload, MultipartUpload={"Parts": parts})
            check("a copied part", s3.head_object(Bucket=bucket, Key=at + "parts")["ContentLength"], 6 * MIB + 7)
            upload = s3.create_multipart_upload(Bucket=bucket, Key=at + "aborted")["UploadId"]
            s3.abort_multipart_upload(Bucket=bucket, Key=at + "aborted", UploadId=upload)
            names = [one["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=at, PaginationConfig={"PageSize": 2}) for one in page.get("Contents", [])]
            check("list", names, sorted(at + name for name in ["a b+c%é", "copy", "dir/", "empty", "large", "parts"]))
            listed = s3.list_objects_v2(Bucket=bucket, Prefix=at, Delimiter="/")
            check("directories", [one["Prefix"] for one in listed.get("CommonPrefixes", [])], [at + "dir/"])
            check("list, first version", [one["Key"] for one in s3.list_objects(Bucket=bucket, Prefix=at)["Contents"]], names)
            url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": at + "copy"}, ExpiresIn=60)
            check("a presigned download", urllib.request.urlopen(url).read(), data)
            url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": at + "presigned"}, ExpiresIn=60)
            check("a presigned upload", urllib.request.urlopen(urllib.request.Request(url, b"presigned", method="PUT")).status, 200)
            check("what it left", s3.get_object(Bucket=bucket, Key=at + "presigned")["Body"].read(), b"presigned")
            gone = [at + name for name in ["a b+c%é", "copy", "dir/", "empty", "large", "parts", "presigned"]]
            done = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in gone]})
            check("delete many", sorted(one["Key"] for one in done["Deleted"]), sorted(gone))
            check("nothing is left", s3.list_objects_v2(Bucket=bucket, Prefix=at)["KeyCount"], 0)


def with_awscli(endpoint, bucket, prefix):
    at = f"s3://{bucket}/{prefix}awscli/"
    work = pathlib.Path(tempfile.mkdtemp())
    (work / "tree/sub").mkdir(parents=True)
    (work / "tree/a").write_bytes(content(1000))
    (work / "tree/sub/b").write_bytes(content(LARGE))

    def aws(*args):
        done = subprocess.run([sys.executable, "-m", "awscli", "--endpoint-url", endpoint, *args], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"FAILED aws {' '.join(args)}: {done.stdout} {done.stderr}")
        return done.stdout

    aws("s3", "cp", "--only-show-errors", str(work / "tree/a"), at + "a")
    aws("s3", "sync", "--only-show-errors", str(work / "tree"), at + "tree")
    check("ls", [line.split()[-1] for line in aws("s3", "ls", "--recursive", at).splitlines()], [f"{prefix}awscli/{name}" for name in ["a", "tree/a", "tree/sub/b"]])
    aws("s3", "sync", "--only-show-errors", at + "tree", str(work / "back"))
    check("sync", (work / "back/sub/b").read_bytes() == content(LARGE))
    aws("s3", "mv", "--only-show-errors", at + "a", at + "moved")
    url = aws("s3", "presign", at + "moved").strip()
    check("presign", urllib.request.urlopen(url).read(), content(1000))
    aws("s3", "rm", "--only-show-errors", "--recursive", at)
    check("rm", aws("s3api", "list-objects-v2", "--bucket", bucket, "--prefix", f"{prefix}awscli/", "--no-paginate", "--query", "KeyCount").strip(), "0")


def with_pyarrow(endpoint, bucket, prefix):
    scheme, _, host = endpoint.partition("://")
    if "/" in host:
        return
    files = pyarrow.fs.S3FileSystem(endpoint_override=host, scheme=scheme, tls_ca_file_path="/etc/ssl/certs/ca-certificates.crt" if scheme == "https" else None) if scheme == "https" else pyarrow.fs.S3FileSystem(endpoint_override=host, scheme=scheme)
    at = f"{bucket}/{prefix}pyarrow"
    table = pyarrow.table({"n": list(range(1000)), "text": [f"row {n}" for n in range(1000)]})
    pyarrow.parquet.write_table(table, f"{at}/t.parquet", filesystem=files)
    check("parquet", pyarrow.parquet.read_table(f"{at}/t.parquet", filesystem=files) == table)
    with files.open_output_stream(f"{at}/large") as stream:
        for _ in range(LARGE // MIB):
            stream.write(content(MIB))
    with files.open_input_file(f"{at}/large") as file:
        file.seek(5 * MIB - 10)
        check("a range", file.read(20), (content(MIB) * 2)[MIB - 10 : MIB + 10])
    files.copy_file(f"{at}/t.parquet", f"{at}/copy.parquet")
    files.move(f"{at}/copy.parquet", f"{at}/moved.parquet")
    found = sorted(one.base_name for one in files.get_file_info(pyarrow.fs.FileSelector(at, recursive=True)) if one.type == pyarrow.fs.FileType.File)
    check("list", found, ["large", "moved.parquet", "t.parquet"])
    files.delete_dir_contents(at)
    check("delete", [one for one in files.get_file_info(pyarrow.fs.FileSelector(at, recursive=True, allow_not_found=True)) if one.type == pyarrow.fs.FileType.File], [])


def with_minio(endpoint, bucket, prefix):
    scheme, _, host = endpoint.partition("://")
    if "/" in host:
        return
    client = minio.Minio(host, access_key=os.environ["AWS_ACCESS_KEY_ID"], secret_key=os.environ["AWS_SECRET_ACCESS_KEY"], secure=scheme == "https", region=os.environ["AWS_REGION"])
    at, data = f"{prefix}minio/", content(LARGE)
    check("bucket", client.bucket_exists(bucket))
    client.put_object(bucket, at + "a", io.BytesIO(b"small"), 5, metadata={"x": "y"})
    client.put_object(bucket, at + "large", io.BytesIO(data), len(data), part_size=8 * MIB)
    client.put_object(bucket, at + "unknown", io.BytesIO(data), -1, part_size=8 * MIB)
    for name in ["large", "unknown"]:
        response = client.get_object(bucket, at + name)
        check(name, hashlib.sha256(response.read()).digest(), hashlib.sha256(data).digest())
        response.close()
        response.release_conn()
    check("stat", client.stat_object(bucket, at + "a").metadata.get("x-amz-meta-x"), "y")
    client.copy_object(bucket, at + "copy", minio.commonconfig.CopySource(bucket, at + "a"))
    check("list", [one.object_name for one in client.list_objects(bucket, at, recursive=True)], [at + name for name in ["a", "copy", "large", "unknown"]])
    check("presigned", urllib.request.urlopen(client.presigned_get_object(bucket, at + "copy")).read(), b"small")
    errors = list(client.remove_objects(bucket, [minio.deleteobjects.DeleteObject(at + name) for name in ["a", "copy", "large", "unknown"]]))
    check("delete many", errors, [])
    check("nothing is left", list(client.list_objects(bucket, at, recursive=True)), [])


def with_duckdb(endpoint, bucket, prefix):
    scheme, _, host = endpoint.partition("://")
    if "/" in host:
        return
    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    extension = next(pathlib.Path(duckdb_extension_httpfs.__file__).parent.rglob("httpfs.duckdb_extension"))
    connection.execute(f"LOAD '{extension}'")
    connection.execute(f"SET ca_cert_file='/etc/ssl/certs/ca-certificates.crt'")
    connection.execute(
        f"CREATE SECRET s (TYPE s3, KEY_ID '{os.environ['AWS_ACCESS_KEY_ID']}', SECRET '{os.environ['AWS_SECRET_ACCESS_KEY']}', ENDPOINT '{host}', "
        f"URL_STYLE 'path', USE_SSL {str(scheme == 'https').lower()}, REGION '{os.environ['AWS_REGION']}')"
    )
    at = f"s3://{bucket}/{prefix}duckdb"
    connection.execute(f"COPY (SELECT range AS n, 'row ' || range AS t FROM range(200000)) TO '{at}/a.parquet'")
    check("sum", connection.execute(f"SELECT sum(n), count(*) FROM '{at}/a.parquet'").fetchone(), (19999900000, 200000))
    check("glob", connection.execute(f"SELECT count(*) FROM glob('{at}/*.parquet')").fetchone(), (1,))


CLIENTS = [with_boto3, with_awscli, with_pyarrow, with_minio, with_duckdb]
for name, endpoint, bucket, prefix in ASKED["targets"]:
    for client in CLIENTS:
        if ASKED.get("only") and client.__name__ not in ASKED["only"]:
            continue
        begun, before = time.monotonic(), passed
        try:
            client(endpoint, bucket, prefix)
        except Exception as error:
            import traceback

            traceback.print_exc()
            raise SystemExit(f"FAILED {client.__name__} at {name} ({endpoint}): {type(error).__name__}: {error}") from None
        print(f"{name} {client.__name__}: {passed - before} checks, {time.monotonic() - begun:.1f} s", flush=True)
print(f"all {passed} checks passed")
