"""Attacks on what a mount lets through: keys, lists, copies, documents, uploads, subresources, signatures."""

from proxy_attack_tools import *


# --- Paths --------------------------------------------------------------------------------------------------------------

def paths():
    outside = {
        "a key outside": "database/x", "the prefix itself": "data", "no boundary": "data2/x", "another case": "Data/x", "the first letter encoded": "%64atabase/x",
        "a slash before": "/data/x", "two slashes before": "//database/x", "an encoded slash before": "%2Fdata/x", "a dot at the end of the prefix": "data./x", "dots at the end": "data../x",
        "a space before": "%20data/x", "full-width letters": "%EF%BD%84ata/x", "a combining mark": "data%CC%81/x", "a soft hyphen": "da%C2%ADta/x", "a zero-width space": "data%E2%80%8B/x",
        "a full-width slash": "data%EF%BC%8Fx", "a division slash": "data%E2%88%95x", "other": "other/x", "an upload of the store": ".uploads/x", "the store's own": ".sandpail/x", "a tab": "data%09/x",
        "a slash encoded twice": "data%252Fx", "a backslash": "data%5Cx", "a newline": "data%0A/x", "half of the prefix": "dat/x", "a parameter": "data;/x",
    }
    refused = {
        "..": "data/../database/x", ".. encoded": "data/%2e%2e/database/x", ".. half encoded": "data/.%2E/database/x", ".. and slash encoded": "data/..%2fdatabase/x",
        "all encoded": "data%2f%2e%2e%2fdatabase%2fx", "encoded twice": "data/%252e%252e/database/x", "slash encoded twice": "data/..%252fdatabase/x", "thrice": "data/%25252e%25252e/../database/x",
        "slashes and ..": "data//../database/x", ".": "data/./x", ". encoded": "data/%2e/x", "backslashes": "data/..%5cdatabase%5cx", "backslashes before": "data%5c..%5cdatabase", "a leading ..": "../my/database/x",
        "a trailing ..": "data/x/..", "a trailing .. encoded": "data/x/%2e%2e", "NUL": "data/x%00", "NUL before ..": "data/%00/../x", "overlong dots": "data/%c0%ae%c0%ae/database/x",
        "overlong slash": "data/..%c0%afdatabase/x", "three byte overlong": "data/%e0%80%ae%e0%80%ae/database/x", "surrogates": "data/%ed%a0%80x", "invalid UTF-8": "data/%ff", "half an escape": "data/%2",
        "no escape": "data/%zz", "% alone": "data/%", "too long": "data/" + "k" * 1020, "too long when decoded": "data/" + "%C3%A9" * 600, "UTF-16 escapes": "data/%u002e%u002e/database/x",
    }
    harmless = {
        "full-width dots": "data/%EF%BC%8E%EF%BC%8E/database/x", "a two dot leader": "data/%E2%80%A5/database/x", "three dots": "data/.../database/x", "a path parameter": "data/..;/database/x",
        "NFD": "data/e%CC%81-%CC%81", "a plus": "data/a+b", "empty parts": "data//database/x", "like the mount": "data/data/database/x",
        "a line for the log": "data/%0A2001-01-01T00:00:00.000000Z%20%20INFO%20sandpail::audit:%20forged%1B[31m",
    }
    for name in P["path_targets"]:
        target = TARGETS[name]
        for what, key in outside.items():
            for method, body in (("GET", b""), ("PUT", b"overwritten"), ("DELETE", b"")):
                refuse(f"{name}: {method} {what}", Request(target, method, at(target, key), body=body), DENIED)
            if target["name"] != "virtual":
                refuse(f"{name}: HEAD {what}", Request(target, "HEAD", at(target, key)), DENIED | NONE)
        for what, key in refused.items():
            for method, body in (("GET", b""), ("PUT", b"overwritten")):
                refuse(f"{name}: {method} {what}", Request(target, method, at(target, key), body=body), BAD | DENIED | {"EntityTooLarge"})
        for what, key in harmless.items():
            passes(f"{name}: {what}", Request(target, "GET", at(target, key)), 404, lambda answer: answer.code == "NoSuchKey")
        if name == P["path_targets"][0]:
            for what, line in {"backslashes": "data\\..\\database\\x", "raw UTF-8": "data/é", "a fragment": "data/x#/../../database/x", "a space": "data/x y", "a brace": "data/{x}", "a quote": 'data/"x"', "a caret": "data/^"}.items():
                refuse(f"{name}: raw {what}", Request(target, "GET", at(target, line)), BAD)
    relative = TARGETS["relative"]
    for what, key in {"..": "../database/x", "encoded": "%2e%2e%2fdatabase/x", "encoded twice": "%252e%252e/database/x", "backslash": "..%5cdatabase", "in the binding": "../MY_BUCKET/x"}.items():
        refuse(f"relative: {what}", Request(relative, "GET", at(relative, key)), BAD)
    passes("relative: a slash before stays below", Request(relative, "GET", at(relative, "/database/x")), 404)
    passes("relative: its own key is another below", Request(relative, "GET", at(relative, "database/x")), 404)
    for what, path in {"the bucket encoded": f"/%2e%2e{relative['base']}/x", "another bucket": "/SECOND/data/x", "a real name": "/second/data/x", "no bucket": "//data/x", "an id of another sandbox": f"/{P['other']['id']}/other/x",
                       "a mount that is gone": f"/{P['gone']}/x"}.items():
        refuse(f"relative: {what}", Request(relative, "GET", path), DENIED | BAD)
    internal = TARGETS["by id"]
    identity = internal["base"].split("/")[1]
    for what, path in {"another sandbox's mount": f"/{P['other']['id']}/{P['other']['bucket']}/other/x", "a mount that is gone": f"/{P['gone']}/{internal['bucket']}/data/x", "no mount": f"/nosuchmount/{internal['bucket']}/data/x",
                       "another bucket of a mount": f"/{identity}/second/data/x", "another mount's bucket": f"/{identity}/{P['remote_bucket']}/data/x", "an empty id": f"//{internal['bucket']}/data/x", "upper case": f"/{identity.upper()}/{internal['bucket']}/data/x",
                       ".. as id": f"/../{internal['bucket']}/data/x", ".. behind the id": f"/{identity}/../{P['other']['id']}/{P['other']['bucket']}/other/x", "encoded slash in the id": f"/{identity}%2F{internal['bucket']}/database/x"}.items():
        refuse(f"by id: {what}", Request(internal, "GET", path), DENIED | BAD)
    for what, host in {"another sandbox's mount": f"{P['other']['id']}.s3-credential-proxy.internal", "a mount that is gone": f"{P['gone']}.s3-credential-proxy.internal", "another bucket": "second.s3.internal",
                       "nested": f"x.{identity}.s3-credential-proxy.internal", "the store's address": "127.0.0.1"}.items():
        refuse(f"Host: {what}", Request({**internal, "address": internal["host"]}, "GET", f"/{internal['bucket']}/data/x", host=host), DENIED | BAD)


# --- Lists --------------------------------------------------------------------------------------------------------------

def listed(answer):
    text = answer.body.decode(errors="replace")
    return [urllib.parse.unquote(key) for key in re.findall(r"<Key>([^<]*)</Key>", text) + re.findall(r"<CommonPrefixes><Prefix>([^<]*)</Prefix>", text)]


def lists():
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        base, prefixes = target["base"], tuple(target["prefixes"])
        inside = lambda answer: listed(answer) and all(key.startswith(prefixes) for key in listed(answer)) and b"Owner" not in answer.body
        inside_or_none = lambda answer: all(key.startswith(prefixes) for key in listed(answer)) and b"Owner" not in answer.body
        ask = lambda query, **more: Request(target, "GET", base, query, **more)
        for what, query in {"no prefix": "list-type=2", "no prefix, version 1": "", "an empty prefix": "list-type=2&prefix=", "half a prefix": "list-type=2&prefix=d", "without boundary": "list-type=2&prefix=data", "owners": "list-type=2&fetch-owner=true",
                            "a delimiter": "list-type=2&delimiter=%2F", "a delimiter in the prefix": "list-type=2&delimiter=a", "a delimiter across the prefix": "list-type=2&delimiter=ta%2F", "encoded": "list-type=2&encoding-type=url",
                            "before the prefix": "list-type=2&start-after=a", "a marker before": "marker=a", "its own": "list-type=2&prefix=data%2F", "a trailing slash": "list-type=2&prefix=data/", "small pages": "list-type=2&max-keys=1"}.items():
            passes(f"{name}: list, {what}", ask(query), check=inside)
        passes(f"{name}: a list with a slash behind the bucket", Request(target, "GET", base + "/", "list-type=2"), check=inside)
        for what, query in {"behind the prefix": "list-type=2&start-after=datab", "a marker behind": "marker=datab", "a marker between": "marker=data0", "a part of ..": "list-type=2&prefix=data%2F..", "nothing": "list-type=2&prefix=data%2Fnone&delimiter=%2F",
                            "no keys": "list-type=2&max-keys=0", "uploads": "uploads"}.items():
            passes(f"{name}: list, {what}", ask(query), check=inside_or_none)
        for what, query in {"uploads with a marker": "uploads&key-marker=a", "uploads behind": f"uploads&key-marker=database%2Fup&upload-id-marker={quoted(P['uploads'].get(name, 'x'))}"}.items():
            answer = send(ask(query))
            # SeaweedFS does not do this.
            tell(f"{name}: list, {what}", answer.status in (200, 501) and inside_or_none(answer), answer.body[:600])
        for what, query in {"a foreign prefix": "list-type=2&prefix=database%2F", "a foreign prefix, version 1": "prefix=database%2F", "without slash": "list-type=2&prefix=database", "another case": "list-type=2&prefix=DATA%2F", "a slash": "list-type=2&prefix=%2F",
                            "a slash before": "list-type=2&prefix=%2Fdata%2F", "..": "list-type=2&prefix=data%2F..%2F", ".. encoded twice": "list-type=2&prefix=data%2F%252e%252e%2F", "the store's uploads": "list-type=2&prefix=.uploads%2F",
                            "foreign uploads": "uploads&prefix=database%2F", "two prefixes": "list-type=2&prefix=data%2F&prefix=database%2F", "two prefixes, one encoded": "list-type=2&prefix=data%2F&%70refix=database%2F", "a prefix of another case": "list-type=2&Prefix=database%2F",
                            "version 3": "list-type=3", "two versions": "list-type=2&list-type=1", "uploads and objects": "list-type=2&uploads", "versions": "versions", "versions and objects": "list-type=2&versions", "a version marker": "version-id-marker=1&key-marker=a",
                            "negative pages": "list-type=2&max-keys=-1", "endless pages": "list-type=2&max-keys=99999999999999999999", "another encoding": "list-type=2&encoding-type=base64", "NUL": "list-type=2&prefix=data%2F%00", "a token": "list-type=2&continuation-token=1", "no token": "list-type=2&continuation-token=",
                            "a marker of version 2": "list-type=2&marker=a", "a token of version 1": "continuation-token=x", "a long delimiter": "list-type=2&delimiter=" + "d" * 3000, "a filter": "list-type=2&prefix=data%2F&glob=*", "metadata": "list-type=2&metadata=true", "many parameters": "list-type=2&" + "&".join(f"p{n}=1" for n in range(80)),
                            "an unfinished escape": "list-type=2&prefix=data%2", "invalid UTF-8": "list-type=2&prefix=%ff"}.items():
            refuse(f"{name}: list, {what}", ask(query))
        first = send(ask("list-type=2&prefix=data%2F&max-keys=1"))
        token = (re.search(r"<NextContinuationToken>([^<]+)<", first.body.decode()) or [None, ""])[1].replace("&amp;", "&")
        tell(f"{name}: a list goes on", token, first.body[:500])
        passes(f"{name}: its own token", ask(f"list-type=2&prefix=data%2F&max-keys=1&continuation-token={urllib.parse.quote(token, safe='')}"), check=inside)
        for what, query in {"of another prefix": f"list-type=2&prefix=data%2Fsub&continuation-token={{}}", "with a delimiter": "list-type=2&prefix=data%2F&delimiter=%2F&continuation-token={}", "changed": "list-type=2&prefix=data%2F&continuation-token={}x"}.items():
            refuse(f"{name}: a token {what}", ask(query.format(urllib.parse.quote(token, safe=""))), BAD)
        other = TARGETS["remote" if name == "embedded" else "embedded"]
        refuse(f"{name}: a token of another mount", Request(other, "GET", other["base"], f"list-type=2&prefix=data%2F&continuation-token={urllib.parse.quote(token, safe='')}"), BAD)
        refuse(f"{name}: a token of another sandbox", ask(f"list-type=2&prefix=data%2F&continuation-token={urllib.parse.quote(P['other']['token'], safe='')}"), BAD)
        refuse(f"{name}: the store's own token", ask(f"list-type=2&prefix=data%2F&continuation-token={urllib.parse.quote(token[32:] or 'x', safe='')}"), BAD)
    for host in ("s3.internal", "r2.internal"):
        target = {"host": host, "port": 80}
        allowed = set(P["buckets"])
        passes(f"all buckets at {host}", Request(target, "GET", "/"), check=lambda answer: set(re.findall(r"<Name>([^<]*)</Name>", answer.body.decode())) <= allowed)
        for what, query in {"by prefix": "prefix=s", "by region": "bucket-region=x", "by token": "continuation-token=x"}.items():
            refuse(f"all buckets at {host}, {what}", Request(target, "GET", "/", query))
    relative = TARGETS["relative"]
    for what, query in {"all": "list-type=2", "a foreign name": "list-type=2&prefix=database%2F", "uploads": "uploads"}.items():
        passes(f"relative: list, {what}", Request(relative, "GET", relative["base"], query), check=lambda answer: not any(key.startswith(("data", "ro/", "other", "Data")) and key not in P["relative_keys"] for key in listed(answer)))
    refuse("relative: list, ..", Request(relative, "GET", relative["base"], "list-type=2&prefix=..%2F"))
    read_only = TARGETS["read-only"]
    passes("read-only: list", Request(read_only, "GET", read_only["base"], "list-type=2&prefix=ro%2F"), check=lambda answer: listed(answer) == ["ro/x"])


# --- Copies -------------------------------------------------------------------------------------------------------------

def copies():
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        bucket, path = target["bucket"], at(target, "data/copied")
        sources = {
            "outside": f"/{bucket}/database/x", "without slash": f"{bucket}/database/x", "the prefix itself": f"{bucket}/data", "no boundary": f"{bucket}/data2/x", "..": f"{bucket}/data/../database/x", ".. encoded": f"{bucket}/data/%2e%2e/database/x",
            ".. with encoded slashes": f"{bucket}/data%2F..%2Fdatabase%2Fx", "all encoded": f"{bucket}%2Fdatabase%2Fx", "all encoded, slash before": f"%2F{bucket}%2Fdatabase%2Fx", "encoded twice": f"{bucket}/data/%252e%252e/database/x", "one letter encoded": f"{bucket}/%64atabase/x",
            "another bucket": "second/data/x", "another bucket, slash": "/second/data/x", "a bucket of another sandbox": f"{P['other']['bucket']}/other/x", "a foreign bucket": f"{P['foreign_bucket']}/data/x", "an ARN": f"arn:aws:s3:::{bucket}/database/x",
            "an access point": "arn:aws:s3:us-east-1:123456789012:accesspoint/point/object/database/x", "outposts": "arn:aws:s3-outposts:us-east-1:123456789012:outpost/o/object/database/x", "a version": f"{bucket}/data/x?versionId=1", "no version": f"{bucket}/data/x?versionId=null", "an empty query": f"{bucket}/data/x?",
            "another query": f"{bucket}/data/x?partNumber=1", "two slashes": f"//{bucket}/data/x", "a slash in the key": f"{bucket}//data/x", "only a bucket": bucket, "only a bucket and slash": f"{bucket}/", "nothing": "", "a URL": f"http://s3.internal/{bucket}/database/x", "a host": f"s3.internal/{bucket}/database/x",
            "backslashes": f"{bucket}\\database\\x", "NUL": f"{bucket}/data/x%00", "invalid UTF-8": f"{bucket}/data/%ff", "overlong": f"{bucket}/data/%c0%ae%c0%ae/database/x", "a read-only mount": f"{bucket}/ro/x", "two foreign sources": f"{bucket}/database/x, {bucket}/data/x",
            "another case": f"{bucket.upper()}/database/x", "a mount's id": f"{P['other']['id']}/other/x",
        }
        for what, source in sources.items():
            refuse(f"{name}: copy of {what}", Request(target, "PUT", path, headers={"x-amz-copy-source": source}), DENIED | BAD)
        refuse(f"{name}: copy by Google's header", Request(target, "PUT", path, headers={"x-goog-copy-source": f"{bucket}/database/x"}), DENIED)
        refuse(f"{name}: two kinds of sources", Request(target, "PUT", path, headers={"x-amz-copy-source": f"{bucket}/data/x", "x-goog-copy-source": f"{bucket}/database/x"}), BAD)
        one = Request(target, "PUT", path, headers={"x-amz-copy-source": f"{bucket}/data/x"})
        refuse(f"{name}: the source given twice", one.edited("x-amz-copy-source: ", f"x-amz-copy-source: {bucket}/database/x\r\nX-Amz-Copy-Source: "), BAD | DENIED)
        for method in ("GET", "DELETE", "POST"):
            refuse(f"{name}: {method} with a copy source", Request(target, method, path, headers={"x-amz-copy-source": f"{bucket}/data/x"}))
        refuse(f"{name}: a copy source in a presigned URL", plain(target, "PUT", path, presigned(target, "PUT", path, **{"X_Amz_Copy_Source": f"{bucket}/database/x"})), DENIED | BAD)
        refuse(f"{name}: a copy to outside", Request(target, "PUT", at(target, "database/x"), headers={"x-amz-copy-source": f"{bucket}/data/x"}), DENIED)
        refuse(f"{name}: a copy with a body", Request(target, "PUT", path, headers={"x-amz-copy-source": f"{bucket}/data/x"}, body=b"x"), BAD)
        refuse(f"{name}: a copy that sets tags", Request(target, "PUT", path, headers={"x-amz-copy-source": f"{bucket}/data/x", "x-amz-tagging-directive": "REPLACE", "x-amz-tagging": "a=b"}), DENIED)
        passes(f"{name}: nothing was copied", Request(target, "GET", path), 404)
        made = passes(f"{name}: an upload for copies", Request(target, "POST", at(target, "data/parts"), "uploads"))
        upload = (re.search(r"<UploadId>([^<]+)<", made.body.decode()) or [None, ""])[1]
        query = f"partNumber=1&uploadId={urllib.parse.quote(upload, safe='')}"
        for what, source in sources.items():
            refuse(f"{name}: part copy of {what}", Request(target, "PUT", at(target, "data/parts"), query, {"x-amz-copy-source": source}), DENIED | BAD)
        refuse(f"{name}: part copy by Google's header", Request(target, "PUT", at(target, "data/parts"), query, {"x-goog-copy-source": f"{bucket}/database/x"}), DENIED)
        passes(f"{name}: no part was made", Request(target, "GET", at(target, "data/parts"), f"uploadId={urllib.parse.quote(upload, safe='')}"), check=lambda answer: b"<Part>" not in answer.body)
        passes(f"{name}: the upload ends", Request(target, "DELETE", at(target, "data/parts"), f"uploadId={urllib.parse.quote(upload, safe='')}"), 204)
    read_only = TARGETS["read-only"]
    refuse("a copy into a read-only mount", Request(read_only, "PUT", at(read_only, "ro/y"), headers={"x-amz-copy-source": f"{read_only['bucket']}/ro/x"}), DENIED)


# --- DeleteObjects ------------------------------------------------------------------------------------------------------

SPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def deletes():
    one = lambda key: f"<Object><Key>{key}</Key></Object>"
    wrap = lambda inner, root="Delete", more=f' xmlns="{SPACE}"': f"<{root}{more}>{inner}</{root}>"
    laughs = "<!DOCTYPE d [" + "".join(f'<!ENTITY e{n} "{(f"&e{n - 1};" if n else "ha") * 10}">' for n in range(9)) + "]>"
    bodies = {
        "a foreign key": wrap(one("database/x")), "a foreign key among own": wrap(one("data/gone") + one("database/x")), "a key of the read-only mount": wrap(one("data/gone") + one("ro/x")), "..": wrap(one("data/../database/x")), ".. twice encoded": wrap(one("data/%2e%2e/database/x")),
        "the prefix itself": wrap(one("data")), "a slash before": wrap(one("/data/x")), "a reference": wrap(one("&#x64;atabase/x")), "CDATA": wrap(one("<![CDATA[database/x]]>")), "a comment in a key": wrap(one("data<!-- -->base/x")), "two keys": wrap("<Object><Key>data/gone</Key><Key>database/x</Key></Object>"),
        "a key in a key": wrap("<Object><Key>data/<Key>database/x</Key></Key></Object>"), "objects in objects": wrap(f"<Object><Key>data/gone</Key>{one('database/x')}</Object>"), "an entity": f'<!DOCTYPE d [<!ENTITY k "database/x">]>{wrap(one("&k;"))}', "an outer entity": f'<!DOCTYPE d [<!ENTITY k SYSTEM "file:///etc/passwd">]>{wrap(one("data/&k;"))}',
        "a URL entity": f'<!DOCTYPE d SYSTEM "http://169.254.169.254/x.dtd">{wrap(one("data/gone"))}', "a parameter entity": f'<!DOCTYPE d [<!ENTITY % p SYSTEM "http://127.0.0.1/"> %p;]>{wrap(one("data/gone"))}', "a billion laughs": f"{laughs}{wrap(one('data/&e8;'))}", "an unknown entity": wrap(one("data/&nbsp;")),
        "a version": wrap("<Object><Key>data/gone</Key><VersionId>null</VersionId></Object>"), "an ETag": wrap("<Object><Key>data/gone</Key><ETag>*</ETag></Object>"), "another namespace": wrap(one("data/gone"), more=' xmlns="urn:other"'), "a namespace on the key": wrap('<Object><Key xmlns="urn:x">data/gone</Key></Object>'),
        "prefixed names": f'<s:Delete xmlns:s="{SPACE}"><s:Object><s:Key>data/gone</s:Key></s:Object></s:Delete>', "another root": wrap(one("data/gone"), "DeleteAll"), "two documents": wrap(one("data/gone")) * 2, "an unknown element": wrap(one("data/gone") + "<Bypass>true</Bypass>"), "attributes": wrap('<Object a="b"><Key>data/gone</Key></Object>'),
        "nothing": "", "no objects": wrap(""), "an empty key": wrap(one("")), "no end": "<Delete>" + one("data/gone"), "text": wrap("x" + one("data/gone")), "1001 keys": wrap(one("data/gone") * 1001), "a long key": wrap(one("data/" + "k" * 1100)), "deep": "<a>" * 50_000, "JSON": '{"Objects":[{"Key":"database/x"}]}',
        "UTF-16": wrap(one("database/x")).encode("utf-16"), "UTF-7": b'<?xml version="1.0" encoding="UTF-7"?>' + wrap("+ADw-Object+AD4-").encode(), "invalid UTF-8": wrap(one("data/\udcff")).encode("utf-8", "surrogateescape"), "NUL": wrap(one("data/\0x")), "NUL by reference": wrap(one("data/&#0;x")),
        "too large": wrap(one("data/gone") + " " * (3 << 20)), "gzip": gzip.compress(wrap(one("database/x")).encode()), "a form": "Action=Delete&Key=database/x",
    }
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        for what, body in bodies.items():
            body = body.encode() if isinstance(body, str) else body
            md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
            refuse(f"{name}: delete many, {what}", Request(target, "POST", target["base"], "delete", {"content-md5": md5}, body))
        body = wrap(one("data/x")).encode()
        for what, headers in {"a wrong Content-MD5": {"content-md5": base64.b64encode(bytes(16)).decode()}, "no MD5": {"content-md5": "x"}, "a wrong checksum": {"x-amz-checksum-crc32": "AAAAAA=="}, "a wrong SHA-256": {"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()},
                              "a bypass": {"x-amz-bypass-governance-retention": "true"}, "MFA": {"x-amz-mfa": "1 2"}, "an owner": {"x-amz-expected-bucket-owner": "123456789012"}}.items():
            refuse(f"{name}: delete many with {what}", Request(target, "POST", target["base"], "delete", headers, body))
        refuse(f"{name}: delete many of another hash", Request(target, "POST", target["base"], "delete", body=body, payload=EMPTY), {"BadDigest"})
        refuse(f"{name}: delete many with a value", Request(target, "POST", target["base"], "delete=1", body=body))
        refuse(f"{name}: delete many on a key", Request(target, "POST", at(target, "data/x"), "delete", body=body))
        refuse(f"{name}: delete many twice", Request(target, "POST", target["base"], "delete&delete", body=body))
        passes(f"{name}: nothing was deleted", Request(target, "GET", at(target, "data/x")), check=lambda answer: answer.body == b"mine")
    relative = TARGETS["relative"]
    for key in ("../database/x", "/../database/x", "..\\database"):
        refuse(f"relative: delete many, {key}", Request(relative, "POST", relative["base"], "delete", body=wrap(one(key)).encode()))
    read_only = TARGETS["read-only by id"]
    refuse("read-only: delete many", Request(read_only, "POST", read_only["base"], "delete", body=wrap(one("ro/x")).encode()), DENIED)


# --- Multipart ----------------------------------------------------------------------------------------------------------

def multipart():
    complete = b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"x\"</ETag></Part></CompleteMultipartUpload>"
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        made = send(Request(target, "POST", at(target, "data/up"), "uploads"))
        own = (re.search(r"<UploadId>([^<]+)<", made.body.decode()) or [None, ""])[1]
        tell(f"{name}: an upload of its own", own, made.body)
        # `\0` would not even be one.
        foreign = {"of another key outside": P["uploads"].get(name), "of another mount": P["uploads"].get("other"), "made up": "0" * 32, "a path": "../../database", "a path, encoded": "..%2F..%2Fdatabase", "a path behind its own": f"{own}/../../database", "backslashes": f"{own}\\..\\..\\database", "an absolute path": "/database", "the directory": ".", "a long one": "u" * 5000, "a space": "a b", "empty": "", "a wildcard": "*", "a query": "x&versionId=1"}
        for what, upload in foreign.items():
            if upload is None:
                continue
            query = f"uploadId={urllib.parse.quote(upload, safe='')}"
            for operation, request in {
                "part": Request(target, "PUT", at(target, "data/up"), f"partNumber=1&{query}", body=b"evil part"), "part copy": Request(target, "PUT", at(target, "data/up"), f"partNumber=1&{query}", {"x-amz-copy-source": f"{target['bucket']}/data/x"}),
                "completion": Request(target, "POST", at(target, "data/up"), query, body=complete), "abort": Request(target, "DELETE", at(target, "data/up"), query), "parts": Request(target, "GET", at(target, "data/up"), query),
            }.items():
                refuse(f"{name}: {operation} of an upload {what}", request, {"NoSuchUpload"} | BAD, upstream=True)
        if P["uploads"].get(name):
            query = f"uploadId={urllib.parse.quote(P['uploads'][name], safe='')}"
            for operation, request in {"part": Request(target, "PUT", at(target, "database/up"), f"partNumber=1&{query}", body=b"evil part"), "completion": Request(target, "POST", at(target, "database/up"), query, body=complete), "abort": Request(target, "DELETE", at(target, "database/up"), query), "parts": Request(target, "GET", at(target, "database/up"), query)}.items():
                refuse(f"{name}: {operation} of the foreign upload by its own key", request, DENIED)
        query = f"uploadId={urllib.parse.quote(own, safe='')}"
        for operation, request in {"part": Request(target, "PUT", at(target, "data/up2"), f"partNumber=1&{query}", body=b"x"), "completion": Request(target, "POST", at(target, "data/up2"), query, body=complete), "abort": Request(target, "DELETE", at(target, "data/up2"), query), "parts": Request(target, "GET", at(target, "data/up2"), query)}.items():
            refuse(f"{name}: {operation} of its own upload by another key", request, {"NoSuchUpload"} | BAD, upstream=True)
        for what, request in {
            "part 0": Request(target, "PUT", at(target, "data/up"), f"partNumber=0&{query}", body=b"x"), "part 10001": Request(target, "PUT", at(target, "data/up"), f"partNumber=10001&{query}", body=b"x"), "part -1": Request(target, "PUT", at(target, "data/up"), f"partNumber=-1&{query}", body=b"x"),
            "no part": Request(target, "PUT", at(target, "data/up"), query, body=b"x"), "no upload": Request(target, "PUT", at(target, "data/up"), "partNumber=1", body=b"x"), "two ids": Request(target, "PUT", at(target, "data/up"), f"partNumber=1&{query}&uploadId=x", body=b"x"), "another case": Request(target, "PUT", at(target, "data/up"), "partNumber=1&uploadid=x", body=b"x"),
            "a completion with a key": Request(target, "POST", at(target, "data/up"), query, body=b"<CompleteMultipartUpload><Key>database/x</Key><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>"), "a completion with entities": Request(target, "POST", at(target, "data/up"), query, body=b"<!DOCTYPE c [<!ENTITY e 'x'>]>" + complete),
            "another document": Request(target, "POST", at(target, "data/up"), query, body=b"<Delete><Object><Key>database/x</Key></Object></Delete>"), "a huge completion": Request(target, "POST", at(target, "data/up"), query, body=complete[:-26] + b" " * (5 << 20)), "uploads and an id": Request(target, "POST", at(target, "data/up"), f"uploads&{query}", body=b""),
            "a beginning outside": Request(target, "POST", at(target, "database/up3"), "uploads"), "a beginning with a body": Request(target, "POST", at(target, "data/up3"), "uploads", body=b"x"),
        }.items():
            refuse(f"{name}: {what}", request)
        passes(f"{name}: its upload is untouched", Request(target, "GET", at(target, "data/up"), query), check=lambda answer: b"<Part>" not in answer.body)
        passes(f"{name}: and ends", Request(target, "DELETE", at(target, "data/up"), query), 204)
    for target, key in ((TARGETS["read-only"], "ro/x"), (TARGETS["read-only by id"], "ro/x")):
        for method, query, body in (("PUT", "", b"x"), ("DELETE", "", b""), ("POST", "uploads", b""), ("PUT", "partNumber=1&uploadId=x", b"x"), ("POST", "uploadId=x", complete), ("DELETE", "uploadId=x", b"")):
            refuse(f"{target['name']}: {method} ?{query}", Request(target, method, at(target, key), query, body=body), DENIED)


# --- Subresources and headers -------------------------------------------------------------------------------------------

def subresources():
    names = ["accelerate", "acl", "analytics", "cors", "encryption", "intelligent-tiering", "inventory", "legal-hold", "lifecycle", "logging", "metadataTable", "metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus", "publicAccessBlock", "replication", "requestPayment", "restore", "retention",
             "select&select-type=2", "session", "tagging", "torrent", "versioning", "versions", "website", "renameObject", "append", "versionId=null", "versionId=1", "x-foo", "policy&x-id=GetObject"]
    document = b"<AccessControlPolicy/>"
    for name in ("embedded", "remote"):
        target = TARGETS[name]
        for query in names:
            for method, body in (("GET", b""), ("PUT", document), ("DELETE", b""), ("POST", document)):
                refuse(f"{name}: {method} bucket?{query}", Request(target, method, target["base"], query, body=body))
                refuse(f"{name}: {method} key?{query}", Request(target, method, at(target, "data/x"), query, body=body))
        for what, query in {"capitals": "ACL", "encoded": "%61cl", "twice": "acl&acl=", "twice, encoded": "acl&%61cl", "a value": "acl=x", "behind x-id": "x-id=GetObject&acl", "only x-id": "x-id=GetObjectAcl", "another x-id": "x-id=PutObject", "a semicolon": ";acl", "a space": "%20acl", "NUL": "acl%00", "an ampersand": "&&acl", "a plus": "+acl", "a slash": "acl/", "policy after list": "list-type=2&policy", "uploads with value": "uploads=1", "location with value": "location=1",
                            "attributes with value": "attributes=1", "part number": "partNumber=x", "expires": "response-expires=%0d%0aSet-Cookie:x"}.items():
            refuse(f"{name}: GET key?{query} ({what})", Request(target, "GET", at(target, "data/x"), query))
        for what, request in {
            "CreateBucket": Request(target, "PUT", target["base"]), "CreateBucket elsewhere": Request(target, "PUT", "/attacked"), "DeleteBucket": Request(target, "DELETE", target["base"]), "CreateBucket with a slash": Request(target, "PUT", target["base"] + "/"), "a form": Request(target, "POST", target["base"], headers={"content-type": "multipart/form-data; boundary=b"}, body=b"--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\ndatabase/x\r\n--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nevil\r\n--b--\r\n"),
            "a form on a key": Request(target, "POST", at(target, "data/x"), headers={"content-type": "multipart/form-data; boundary=b"}, body=b"--b--\r\n"), "PATCH": Request(target, "PATCH", at(target, "data/x"), body=b"x"), "OPTIONS": Request(target, "OPTIONS", at(target, "data/x")), "POST of nothing": Request(target, "POST", at(target, "data/x")),
            "an unsigned form": plain(target, "POST", target["base"], headers={"content-type": "multipart/form-data; boundary=b"}, body=b"--b--\r\n"), "a body with GET": Request(target, "GET", at(target, "data/x"), body=b"x"), "a body with DELETE": Request(target, "DELETE", at(target, "data/x"), body=b"x"),
        }.items():
            refuse(f"{name}: {what}", request)
        for header, value in {"x-amz-acl": "public-read", "x-amz-grant-read": "uri=http://acs.amazonaws.com/groups/global/AllUsers", "x-amz-grant-full-control": "id=1", "x-amz-website-redirect-location": "http://169.254.169.254/", "x-amz-object-lock-mode": "COMPLIANCE", "x-amz-object-lock-retain-until-date": "2099-01-01T00:00:00Z", "x-amz-object-lock-legal-hold": "ON",
                              "x-amz-bypass-governance-retention": "true", "x-amz-expected-bucket-owner": "123456789012", "x-amz-source-expected-bucket-owner": "1", "x-amz-request-payer": "requester", "x-amz-tagging": "a=b", "x-amz-mfa": "1 1", "x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "k", "x-amz-server-side-encryption-customer-key": "a",
                              "x-amz-copy-source-server-side-encryption-customer-key": "a", "x-amz-write-offset-bytes": "1", "x-amz-rename-source": f"/{target['bucket']}/database/x", "x-amz-security-token": "token", "x-goog-acl": "publicRead", "x-goog-if-generation-match": "0", "x-goog-project-id": "1", "x-amz-fwd-status": "200"}.items():
            refuse(f"{name}: PUT with {header}", Request(target, "PUT", at(target, "data/marked"), headers={header: value}, body=b"x"))
        passes(f"{name}: none of these was made", Request(target, "GET", at(target, "data/marked")), 404)
        made = passes(f"{name}: headers that mean nothing are left out", Request(target, "PUT", at(target, "data/plain"), headers={"x-forwarded-for": "1.2.3.4", "x-forwarded-host": "evil", "forwarded": "for=1", "via": "1.1 x", "cookie": "a=b", "x-http-method-override": "DELETE", "x-original-url": "/database/x", "proxy-authorization": "x", "x-amz-acl": "private"}, body=b"plain"))
        passes(f"{name}: and the object is as it was sent", Request(target, "GET", at(target, "data/plain")), check=lambda answer: answer.body == b"plain" and not {"server", "via", "x-amz-id-2", "x-amz-version-id", "location"} & set(answer.headers))
        passes(f"{name}: away with it", Request(target, "DELETE", at(target, "data/plain")), 204)


# --- Signatures ---------------------------------------------------------------------------------------------------------

def chunked(parts, request, sign=True, end=b"\r\n", sizes=None):
    """A body in aws-chunked, whose chunks are signed in a chain."""
    previous, out = request.signature, b""
    key, scope = signing_key(KEY[1], request.at[:8]), f"{request.at[:8]}/auto/s3/aws4_request"
    for index, part in enumerate([*parts, b""]):
        text = f"AWS4-HMAC-SHA256-PAYLOAD\n{request.at}\n{scope}\n{previous}\n{EMPTY}\n{hashlib.sha256(part).hexdigest()}"
        previous = mac(key, text).hex()
        size = sizes[index] if sizes else f"{len(part):x}"
        out += f"{size};chunk-signature={previous if sign else '0' * 64}\r\n".encode() + part + (b"\r\n" if part else end)
    return out


def signatures():
    for name in ("embedded", "remote by host", "by id"):
        target = TARGETS[name]
        path = at(target, "data/x")
        get = lambda **more: Request(target, "GET", path, **more)
        day = stamp()[:8]
        for what, request in {
            "none": plain(target, "GET", path), "another sandbox's key": get(key=OTHER), "its id with our secret": get(key=(OTHER[0], KEY[1])), "our id with its secret": get(key=(KEY[0], OTHER[1])), "a wrong secret": get(key=(KEY[0], "wrong")), "an unknown id": get(key=("AKIAIOSFODNN7EXAMPLE", KEY[1])), "an empty id": get(key=("", KEY[1])), "lower case": get(key=(KEY[0].lower(), KEY[1])),
            "old": get(skew=-1000), "from the future": get(skew=1000), "no host signed": get(signed=["x-amz-content-sha256", "x-amz-date"]), "no date signed": get(signed=["host", "x-amz-content-sha256"]), "a header more": Request(target, "GET", path, signed=["host", "x-amz-content-sha256", "x-amz-date", "x-amz-meta-a"]), "unsorted": get(signed=["x-amz-date", "host", "x-amz-content-sha256"]),
            "doubled names": get(signed=["host", "host", "x-amz-content-sha256", "x-amz-date"]), "of another path": Request(target, "GET", at(target, "data/y")).edited("data/y", "data/x"), "of another method": Request(target, "GET", path).edited("GET ", "DELETE "), "a parameter more": get().edited(f"{path} ", f"{path}?partNumber=1 "), "an x-amz- header more": get().edited("\r\n\r\n", "\r\nx-amz-meta-a: b\r\n\r\n"),
            "version 2": plain(target, "GET", path, headers={"authorization": f"AWS {KEY[0]}:c2ln", "date": "x"}), "version 2 in the query": plain(target, "GET", path, f"AWSAccessKeyId={KEY[0]}&Expires=9999999999&Signature=c2ln"), "version 4A": get().edited("AWS4-HMAC-SHA256 ", "AWS4-ECDSA-P256-SHA256 "), "Basic": plain(target, "GET", path, headers={"authorization": "Basic eDp4"}), "Bearer": plain(target, "GET", path, headers={"authorization": "Bearer " + KEY[1]}),
            "a token": get(headers={"x-amz-security-token": "x"}), "a token in the query": Request(target, "GET", path, "X-Amz-Security-Token=x"), "no payload hash": Request(target, "GET", path, signed=["host", "x-amz-date"]).edited(f"x-amz-content-sha256: {EMPTY}\r\n", ""), "two of them": get().edited("authorization: ", "Authorization: AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=x\r\nauthorization: "),
            "two dates": get().edited("x-amz-date: ", f"x-amz-date: {stamp(-5000)}\r\nx-amz-date: "), "another service": get().edited("/s3/aws4_request", "/sts/aws4_request"), "another day": get().edited(f"/{day}/", "/20200101/"), "no fields": get().edited("Signature=", "Sig="), "fields twice": get().edited(", Signature=", f", Signature={'0' * 64}, Signature="), "an empty signature": Request(target, "GET", path, sign=False, headers={"x-amz-date": stamp(), "x-amz-content-sha256": EMPTY, "authorization": f"AWS4-HMAC-SHA256 Credential={KEY[0]}/{day}/auto/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature="}),
            "Google's by our key": get().edited("AWS4-HMAC-SHA256 ", "GOOG4-HMAC-SHA256 "),
        }.items():
            refuse(f"{name}: signature, {what}", request, DENIED | BAD)
        good = presigned(target, "GET", path)
        passes(f"{name}: presigned by our key", plain(target, "GET", path, good), check=lambda answer: answer.body == b"mine")
        for what, request in {
            "for a foreign key": plain(target, "GET", at(target, "database/x"), presigned(target, "GET", at(target, "database/x"))), "for a foreign key, PUT": plain(target, "PUT", at(target, "database/x"), presigned(target, "PUT", at(target, "database/x")), body=b"evil"), "used for a foreign key": plain(target, "GET", at(target, "database/x"), good), "used for PUT": plain(target, "PUT", path, good, body=b"evil"), "used for DELETE": plain(target, "DELETE", path, good),
            "expired": plain(target, "GET", path, presigned(target, "GET", path, expires=1, skew=-10)), "0 seconds": plain(target, "GET", path, presigned(target, "GET", path, expires=0)), "8 days": plain(target, "GET", path, presigned(target, "GET", path, expires=691200)), "negative": plain(target, "GET", path, presigned(target, "GET", path, expires=-1)), "from the future": plain(target, "GET", path, presigned(target, "GET", path, skew=2000)),
            "by another sandbox": plain(target, "GET", path, presigned(target, "GET", path, key=OTHER)), "with a parameter more": plain(target, "GET", path, good + "&response-content-type=text/html"), "with acl": plain(target, "GET", path, presigned(target, "GET", path, "acl")), "with acl added": plain(target, "GET", path, good + "&acl"), "with a version": plain(target, "GET", path, presigned(target, "GET", path, "versionId=1")),
            "without host": plain(target, "GET", path, presigned(target, "GET", path, signed=("x-amz-date",), headers={"x-amz-date": "x"})), "signed headers that are not there": plain(target, "GET", path, presigned(target, "GET", path, signed=("host", "x-amz-acl"))), "a header that is not signed": plain(target, "GET", path, good, {"x-amz-acl": "public-read"}), "and signed by a header": Request(target, "GET", path, good), "and by another's header": Request(target, "GET", path, good, key=OTHER),
            "twice": plain(target, "GET", path, good + "&" + good), "in two cases": plain(target, "GET", path, good + "&x-amz-signature=0"), "with Google's too": plain(target, "GET", path, good + "&X-Goog-Signature=0"), "with version 2 too": plain(target, "GET", path, good + f"&AWSAccessKeyId={KEY[0]}&Signature=x"), "a changed date": plain(target, "GET", path, good.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")),
            "a grant in it": plain(target, "PUT", path, presigned(target, "PUT", path, **{"x_amz_grant_read": "id=1"}), body=b"evil"), "an acl in it": plain(target, "PUT", path, presigned(target, "PUT", path, **{"X_Amz_Acl": "public-read"}), body=b"evil"), "a list of all": plain(target, "GET", target["base"], presigned(target, "GET", target["base"], "list-type=2&prefix=database%2F")),
        }.items():
            refuse(f"{name}: presigned {what}", request, DENIED | BAD | {"NotImplemented"})
        streaming = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
        put = lambda payload=streaming, length=8, **more: Request(target, "PUT", at(target, "data/streamed"), headers={"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(length)} | more, payload=payload, length=False)

        def streamed(what, request, body, codes=ANY):
            request.head = request.head[:-2] + f"content-length: {len(body)}\r\n\r\n".encode()
            request.body = body
            refuse(f"{name}: streaming, {what}", request, codes)
        unsigned = lambda body, trailer="x-amz-checksum-crc32:AAAAAA==": f"{len(body):x}\r\n{body}\r\n0\r\n{trailer}\r\n\r\n".encode()
        trailing = {"payload": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-trailer": "x-amz-checksum-crc32"}
        crc = base64.b64encode(struct.pack(">I", zlib.crc32(b"evilevil"))).decode()
        request = put()
        streamed("wrong signatures", request, chunked([b"evil", b"evil"], request, sign=False))
        request = put()
        streamed("chunks in another order", request, chunked([b"evil", b"good"], request).replace(b"evil", b"good", 1))
        request = put(length=9)
        streamed("shorter than it says", request, chunked([b"evil", b"evil"], request))
        request = put(length=7)
        streamed("longer than it says", request, chunked([b"evil", b"evil"], request))
        request = put()
        streamed("cut off", request, chunked([b"evil", b"evil"], request)[:-120])
        request = put()
        streamed("bytes behind", request, chunked([b"evil", b"evil"], request) + b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        request = put()
        streamed("a negative size", request, chunked([b"evil", b"evil"], request, sizes=["-4", "4", "0"]))
        request = put()
        streamed("a huge size", request, chunked([b"evil", b"evil"], request, sizes=["ffffffffffffffff", "4", "0"]))
        request = put()
        streamed("a plain body", request, b"evilevil")
        request = put(length="8.0")
        streamed("a length that is none", request, chunked([b"evil", b"evil"], request))
        streamed("a wrong trailer", put(**trailing), unsigned("evilevil"))
        streamed("no trailer", put(**trailing), b"8\r\nevilevil\r\n0\r\n\r\n")
        streamed("another trailer", put(**trailing), unsigned("evilevil", "x-amz-checksum-sha256:" + base64.b64encode(hashlib.sha256(b"evilevil").digest()).decode()))
        streamed("a header as trailer", put(**trailing), unsigned("evilevil", f"x-amz-checksum-crc32:{crc}\r\nx-amz-acl:public-read"))
        streamed("the trailer twice", put(**trailing), unsigned("evilevil", f"x-amz-checksum-crc32:{crc}\r\nx-amz-checksum-crc32:AAAAAA=="))
        streamed("a trailer that is no checksum", put(payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER", **{"x-amz-trailer": "x-amz-copy-source"}), unsigned("evilevil"))
        streamed("an extension", put(**trailing), f"8;x=y\r\nevilevil\r\n0\r\nx-amz-checksum-crc32:{crc}\r\n\r\n".encode())
        streamed("ECDSA", put(payload="STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"), b"0\r\n\r\n")
        streamed("UNSIGNED of another kind", put(payload="STREAMING-UNSIGNED-PAYLOAD"), b"8\r\nevilevil\r\n0\r\n\r\n")
        refuse(f"{name}: another body than was signed", Request(target, "PUT", at(target, "data/streamed"), body=b"evilevil", payload=hashlib.sha256(b"goodgood").hexdigest()), {"BadDigest"})
        refuse(f"{name}: a hash that is none", Request(target, "PUT", at(target, "data/streamed"), body=b"evilevil", payload="e3b0"), BAD)
        passes(f"{name}: none of these was stored", Request(target, "GET", at(target, "data/streamed")), 404)
