//! What a hostile guest may try with a request's head, one line for each attempt. Nothing that is refused here is sent:
//! only a [`crate::Forward`] can be.

use std::time::Duration;

use crate::testing::{Call, call, world};
use crate::{BodyRule, Decision, ErrorAnswer};

#[track_caller]
fn check(line: &str, headers: &[(&str, &str)], expected: &str) {
    let world = world();
    assert_eq!(world.outcome(&call(line, headers).signed(world.now)), expected, "{line} {headers:?}");
}

#[track_caller]
fn check_all(rows: &[(&str, &str)]) {
    for (line, expected) in rows {
        check(line, &[], expected);
    }
}

#[test]
fn hosts_and_paths() {
    check_all(&[
        ("GET s3-credential-proxy.internal/m1/train/data/a", "m1 GetObject data/a"),
        ("GET m1.s3-credential-proxy.internal/train/data/a", "m1 GetObject data/a"),
        ("GET m1.s3-credential-proxy.internal/train/data/deep/a", "m1 GetObject data/deep/a"),
        ("GET s3.internal/train/data/deep/a", "m6 GetObject data/deep/a"),
        ("GET s3.internal:80/train/data/a", "m1 GetObject data/a"),
        ("GET train.s3.internal/data/a", "m1 GetObject data/a"),
        ("GET s3.internal/LOGS/2024/a", "m3 GetObject 2024/a"),
        ("GET s3.internal/logs-real/2024/a", "m3 GetObject 2024/a"),
        ("GET r2.internal/LOGS/a", "m3 GetObject 2024/a"),
        ("GET r2.internal/m3/a", "m3 GetObject 2024/a"),
        ("GET r2.internal/LOGS//a", "m3 GetObject 2024//a"),
        ("GET s3.example.com:443/train/data/a", "m1 GetObject data/a"),
        ("GET S3.Example.com/train/data/a", "m1 GetObject data/a"),
        ("GET train.s3.example.com/data/a", "m1 GetObject data/a"),
        ("GET 127.0.0.1:9000/a.b/x/a", "m5 GetObject x/a"),
        ("GET 127.0.0.1/a.b/x/a", "m5 GetObject x/a"),
        ("GET 127.0.0.1:9001/a.b/x/a", "refused no-route"),
        ("GET a.b.s3.internal/x/a", "m5 GetObject x/a"),
        ("HEAD s3.internal/train", "local HeadBucket"),
        ("HEAD s3.internal/train/", "local HeadBucket"),
        ("GET s3.internal/train?location", "local GetBucketLocation"),
        ("GET s3.internal/", "local ListBuckets"),
        ("GET s3.internal/?x-id=ListBuckets", "local ListBuckets"),
        ("GET s3-credential-proxy.internal/m1/", "local ListBuckets"),
        ("GET s3-credential-proxy.internal/m1/train", "m1 ListObjects"),
        ("GET s3-credential-proxy.internal/__sandbox_credential_proxy_self_test__", "local SelfTest"),
        // A mount of another sandbox, one that is gone, and buckets that are not mounted.
        ("GET s3-credential-proxy.internal/m9/train/data/a", "refused no-route"),
        ("GET m9.s3-credential-proxy.internal/train/data/a", "refused no-route"),
        ("GET x.m1.s3-credential-proxy.internal/train/data/a", "refused no-route"),
        ("GET s3-credential-proxy.internal/m2/train/data/a", "refused no-route"),
        ("GET s3-credential-proxy.internal/", "refused no-route"),
        ("GET s3-credential-proxy.internal//train/data/a", "refused no-route"),
        ("GET s3.internal/private/data/a", "refused no-route"),
        ("GET s3.internal//train/data/a", "refused no-route"),
        ("GET s3.internal/train%2Fdata/a", "refused no-route"),
        ("GET s3.internal/TRAIN/data/a", "refused no-route"),
        ("GET r2.internal/train/data/a", "refused no-route"),
        ("GET r2.internal/logs-real/a", "refused no-route"),
        ("GET r2.internal/logs/a", "refused no-route"),
        ("GET private.s3.example.com/data/a", "refused no-route"),
        ("GET evils3.example.com/train/data/a", "refused no-route"),
        ("GET s3.example.com.evil.org/train/data/a", "refused no-route"),
        ("GET elsewhere.org/train/data/a", "refused no-route"),
        ("GET evil-s3.internal/train/data/a", "refused no-route"),
        ("GET s3.internal:/train/data/a", "refused malformed"),
        ("GET s3.internal:99999/train/data/a", "refused malformed"),
        ("GET s3.internal:+80/train/data/a", "refused malformed"),
        ("POST s3.internal/", "refused method"),
        ("HEAD s3.internal/", "refused method"),
        ("GET s3.internal/?acl", "refused unknown"),
    ]);
}

#[test]
fn the_name_connected_to_is_the_name_asked_for() {
    let world = world();
    let request = call("GET s3.internal/train/data/a", &[]).signed(world.now);
    for (host, is_good) in
        [("", true), ("s3.internal", true), ("S3.internal.", true), ("r2.internal", false), ("evil.org", false)]
    {
        let arrival = crate::Arrival { host: host.into(), is_tls: false, port: 80 };
        let decision = crate::decide(&request, &arrival, &world.guest, world.now);
        assert_eq!(
            decision.map(drop).map_err(|denied| denied.rule()),
            if is_good { Ok(()) } else { Err("malformed") },
            "{host}"
        );
    }
}

#[test]
fn a_gone_mount_does_not_exist() {
    let mut world = world();
    let request = call("GET s3-credential-proxy.internal/m1/train/data/a", &[]).signed(world.now);
    assert_eq!(world.outcome(&request), "m1 GetObject data/a");
    let revoked = world.routes[0].route().revoked().clone();
    world.routes.remove(0);
    assert!(revoked.is_cancelled());
    assert_eq!(world.outcome(&request), "refused no-route");
}

#[test]
fn keys_outside() {
    check_all(&[
        ("GET s3.internal/train/data/", "m1 GetObject data/"),
        ("GET s3.internal/train/data", "refused outside-prefix"),
        ("GET s3.internal/train/database/x", "refused outside-prefix"),
        ("GET s3.internal/train/other", "refused outside-prefix"),
        ("GET s3.internal/train//data/a", "refused outside-prefix"),
        ("GET s3.internal/train/Data/a", "refused outside-prefix"),
        ("GET s3.internal/train/%64ata/a", "m1 GetObject data/a"),
        ("GET s3.internal/train/data%2Fa", "m1 GetObject data/a"),
        ("GET s3.internal/train/data/a+b%20c", "m1 GetObject data/a+b c"),
        ("GET s3.internal/train/data//a//", "m1 GetObject data//a//"),
        // Names that only look like something else stay below the prefix as they are.
        ("GET s3.internal/train/data/%EF%BC%8E%EF%BC%8E/a", "m1 GetObject data/\u{ff0e}\u{ff0e}/a"),
        ("GET s3.internal/train/data/e%CC%81", "m1 GetObject data/e\u{301}"),
        ("GET s3.internal/train/%EF%BD%84ata/a", "refused outside-prefix"),
        ("GET s3.internal/train/data/a...", "m1 GetObject data/a..."),
        ("GET s3.internal/train/data/...", "m1 GetObject data/..."),
        ("GET s3.internal/train/data/../private/a", "refused invalid"),
        ("GET s3.internal/train/data/..", "refused invalid"),
        ("GET s3.internal/train/data/./a", "refused invalid"),
        ("GET s3.internal/train/../train/data/a", "refused invalid"),
        ("GET s3.internal/../train/data/a", "refused no-route"),
        ("GET s3.internal/train/data/%2e%2e/a", "refused invalid"),
        ("GET s3.internal/train/data/%2E%2E/a", "refused invalid"),
        ("GET s3.internal/train/data/.%2e/a", "refused invalid"),
        ("GET s3.internal/train/data/..%2fa", "refused invalid"),
        ("GET s3.internal/train/data%2F..%2Fa", "refused invalid"),
        ("GET s3.internal/train/data/%252e%252e/a", "refused invalid"),
        ("GET s3.internal/train/data/..%252fa", "refused invalid"),
        ("GET s3.internal/train/data/..%5ca", "refused invalid"),
        ("GET s3.internal/train/data/x%5c..%5ca", "refused invalid"),
        ("GET s3.internal/train/data/x%5ca", "m1 GetObject data/x\\a"),
        ("GET s3.internal/train/data/a%00b", "refused invalid"),
        ("GET s3.internal/train/data/%c0%ae%c0%ae/a", "refused malformed"),
        ("GET s3.internal/train/data/%ff", "refused malformed"),
        ("GET s3.internal/train/data/%zz", "refused malformed"),
        ("GET s3.internal/train/data/%2", "refused malformed"),
        ("GET r2.internal/LOGS/../2023/a", "refused invalid"),
    ]);
    check(
        &format!("GET s3.internal/train/data/{}", "a".repeat(1019)),
        &[],
        &format!("m1 GetObject data/{}", "a".repeat(1019)),
    );
    check(&format!("GET s3.internal/train/data/{}", "a".repeat(1020)), &[], "refused too-large");
    // Together with the mount's prefix it is too long.
    check(&format!("GET r2.internal/LOGS/{}", "a".repeat(1020)), &[], "refused too-large");
}

#[test]
fn a_look_at_the_directories_above_finds_nothing() {
    let world = world();
    for (line, status) in [
        ("HEAD s3.internal/train/data", 404),
        ("HEAD m6.s3-credential-proxy.internal/train/data", 404),
        ("HEAD m6.s3-credential-proxy.internal/train/data/", 404),
        ("HEAD m6.s3-credential-proxy.internal/train/data/deep", 404),
        ("HEAD m6.s3-credential-proxy.internal/train/data/dee", 403),
        ("HEAD m6.s3-credential-proxy.internal/train/dat", 403),
        ("HEAD s3.internal/train/other", 403),
        ("GET s3.internal/train/data", 403),
    ] {
        let denied = world.decide_call(&call(line, &[])).unwrap_err();
        assert_eq!(denied.rule(), "outside-prefix");
        assert_eq!(ErrorAnswer::from(&denied).status.as_u16(), status, "{line}");
    }
}

#[test]
fn read_only_is_by_operation() {
    check_all(&[
        ("GET s3.internal/models/a", "m2 GetObject a"),
        ("HEAD s3.internal/models/a", "m2 HeadObject a"),
        ("GET s3.internal/models?list-type=2", "m2 ListObjectsV2"),
        ("GET s3.internal/models/a?uploadId=u", "m2 ListParts a"),
        ("PUT s3.internal/models/a", "refused read-only"),
        ("DELETE s3.internal/models/a", "refused read-only"),
        ("POST s3.internal/models?delete", "refused read-only"),
        ("POST s3.internal/models/a?uploads", "refused read-only"),
        ("PUT s3.internal/models/a?partNumber=1&uploadId=u", "refused read-only"),
        ("POST s3.internal/models/a?uploadId=u", "refused read-only"),
        ("DELETE s3.internal/models/a?uploadId=u", "refused read-only"),
    ]);
    check("PUT s3.internal/models/a", &[("x-amz-copy-source", "models/b")], "refused read-only");
    // Other verbs in disguise.
    check("GET s3.internal/models/a", &[("x-http-method-override", "DELETE")], "m2 GetObject a");
}

#[test]
fn operations_that_are_not_offered() {
    check_all(&[
        ("GET s3.internal/train/data/a?acl", "refused operation"),
        ("GET s3.internal/train/data/a?%61cl", "refused operation"),
        ("GET s3.internal/train/data/a?acl&acl=", "refused invalid"),
        ("GET s3.internal/train/data/a?acl&%61cl", "refused invalid"),
        ("GET s3.internal/train/data/a?ACL", "refused unknown"),
        ("PUT s3.internal/train/data/a?acl", "refused operation"),
        ("GET s3.internal/train?policy", "refused operation"),
        ("GET s3.internal/train?versions", "refused operation"),
        ("GET s3.internal/train?list-type=2&versions", "refused operation"),
        ("GET s3.internal/train?list-type=2&acl", "refused operation"),
        ("GET s3.internal/train/data/a?versionId=1", "refused operation"),
        ("GET s3.internal/train/data/a?versionId=", "refused operation"),
        ("DELETE s3.internal/train/data/a?versionId=null", "refused operation"),
        ("PUT s3.internal/train/data/a?tagging", "refused operation"),
        ("POST s3.internal/train/data/a?restore", "refused operation"),
        ("POST s3.internal/train/data/a?select&select-type=2", "refused operation"),
        ("PUT s3.internal/train/data/a?retention", "refused operation"),
        ("PUT s3.internal/train/data/a?legal-hold", "refused operation"),
        ("GET s3.internal/train/data/a?torrent", "refused operation"),
        ("PUT s3.internal/train", "refused operation"),
        ("DELETE s3.internal/train", "refused operation"),
        ("POST s3.internal/train", "refused operation"),
        ("POST s3.internal/train/data/a", "refused method"),
        ("PATCH s3.internal/train/data/a", "refused method"),
        ("OPTIONS s3.internal/train/data/a", "refused method"),
        ("PUT s3.internal/train/data/a?x-id=PutObject", "m1 PutObject data/a"),
        ("PUT s3.internal/train/data/a?x-id=GetObject", "refused invalid"),
        ("GET s3.internal/train/data/a?x-id=DeleteObject", "refused invalid"),
        ("GET s3.internal/train/data/a?new-feature", "refused unknown"),
        ("PUT s3.internal/train/data/a?partNumber=0&uploadId=u", "refused invalid"),
        ("PUT s3.internal/train/data/a?partNumber=10001&uploadId=u", "refused invalid"),
        ("PUT s3.internal/train/data/a?partNumber=%2B1&uploadId=u", "refused invalid"),
        ("PUT s3.internal/train/data/a?partNumber=1&uploadId=u%0a", "refused upload"),
        ("PUT s3.internal/train/data/a?partNumber=1&uploadId=", "refused upload"),
        ("PUT s3.internal/train/data/a?partNumber=1&uploadId=u%2F..%2F..%2Fother", "refused upload"),
        ("GET s3.internal/train/data/a?uploadId=..", "refused upload"),
        ("DELETE s3.internal/train/data/a?uploadId=u%5C..%5Cother", "refused upload"),
        ("GET s3.internal/train/data/a?response-content-type=a%0d%0ab", "refused invalid"),
    ]);
}

#[test]
fn copy_sources() {
    for (source, expected) in [
        ("train/data/b", "m1 CopyObject data/a"),
        ("/train/data/b", "m1 CopyObject data/a"),
        ("/train/data/b%20c%2Bd", "m1 CopyObject data/a"),
        ("train%2Fdata%2Fb", "m1 CopyObject data/a"),
        ("%2Ftrain%2Fdata%2Fb", "m1 CopyObject data/a"),
        ("/train/data/deep/b", "m1 CopyObject data/a"),
        ("/train/private/b", "refused outside-prefix"),
        ("/train/data", "refused outside-prefix"),
        ("/train/database/b", "refused outside-prefix"),
        ("/private/data/b", "refused outside-prefix"),
        ("/models/data/b", "refused outside-prefix"),
        ("//train/data/b", "refused invalid"),
        ("/train//data/b", "refused outside-prefix"),
        ("/train/data/../b", "refused invalid"),
        ("/train/data/%2e%2e/b", "refused invalid"),
        ("/train/data/%252e%252e/b", "refused invalid"),
        ("/train%252Fdata%252Fb", "refused invalid"),
        ("/train/data/b?versionId=1", "refused operation"),
        ("/train/data/b?x", "refused operation"),
        ("/train/data/%ff", "refused malformed"),
        ("/train/data/%00", "refused invalid"),
        ("/train/", "refused invalid"),
        ("/train", "refused invalid"),
        ("", "refused invalid"),
        ("arn:aws:s3:us-west-2:123456789012:accesspoint/my-ap/object/data/b", "refused outside-prefix"),
        ("arn:aws:s3:::train/data/b", "refused outside-prefix"),
        ("arn:aws:s3-outposts:us-west-2:1:outpost/o/accesspoint/a/object/data/b", "refused outside-prefix"),
    ] {
        check("PUT s3.internal/train/data/a", &[("x-amz-copy-source", source)], expected);
        let part = expected.replace("CopyObject", "UploadPartCopy");
        check("PUT s3.internal/train/data/a?partNumber=1&uploadId=u", &[("x-amz-copy-source", source)], &part);
        check("PUT s3.internal/train/data/a", &[("x-goog-copy-source", source)], expected);
    }
    let twice = [("x-amz-copy-source", "/train/data/b"), ("x-goog-copy-source", "/train/data/b")];
    check("PUT s3.internal/train/data/a", &twice, "refused invalid");
    let twice = [("x-amz-copy-source", "/train/data/b"), ("x-amz-copy-source", "/train/data/b")];
    check("PUT s3.internal/train/data/a", &twice, "refused invalid");
    let source = [("x-amz-copy-source", "/train/data/b")];
    check("GET s3.internal/train/data/a", &source, "refused invalid");
    check("DELETE s3.internal/train/data/a", &source, "refused invalid");
    check("POST s3.internal/train/data/a?uploads", &source, "refused invalid");
    check("PUT r2.internal/LOGS/a", &[("x-amz-copy-source", "/LOGS/b")], "m3 CopyObject 2024/a");
    check("PUT r2.internal/LOGS/a", &[("x-amz-copy-source", "/logs-real/2024/b")], "refused outside-prefix");
    check("PUT r2.internal/LOGS/a", &[("x-amz-copy-source", "/LOGS/../2023/b")], "refused invalid");
}

#[test]
fn a_copy_source_is_written_anew() {
    let world = world();
    let forward = world.forward("PUT s3.internal/train/data/a", &[("x-amz-copy-source", "/train/data/%62 c%2Bd")]);
    assert_eq!(forward.headers["x-amz-copy-source"], "train/data/b%20c%2Bd");
    assert_eq!(forward.permit.copy_source(), Some("data/b c+d"));
    let forward = world.forward("PUT r2.internal/LOGS/a", &[("x-amz-copy-source", "LOGS/b")]);
    assert_eq!(forward.headers["x-amz-copy-source"], "logs-real/2024/b");
}

#[track_caller]
fn check_list(query: &str, expected: &str) {
    let world = world();
    let line = format!("GET {query}");
    let sent = match world.decide_call(&call(&line, &[])) {
        Ok(Decision::Forward(forward)) => {
            let pair = |(name, value): &(String, String)| format!("{name}={value}");
            let pairs: Vec<_> =
                forward.permit.query().iter().filter(|(name, _)| name != "encoding-type").map(pair).collect();
            pairs.join("&")
        }
        Ok(local) => format!("{local:?}"),
        Err(denied) => format!("refused {}", denied.rule()),
    };
    assert_eq!(sent, expected, "{query}");
}

#[test]
fn lists_are_narrowed() {
    for (query, expected) in [
        ("s3.internal/train", "prefix=data/"),
        ("s3.internal/train?prefix=", "prefix=data/"),
        ("s3.internal/train?prefix=da", "prefix=data/"),
        ("s3.internal/train?prefix=data", "prefix=data/"),
        ("s3.internal/train?prefix=data/", "prefix=data/"),
        ("s3.internal/train?prefix=data%2Fx", "prefix=data/x"),
        ("s3.internal/train?prefix=data/.git", "prefix=data/.git"),
        ("s3.internal/train?prefix=data/deep/x", "prefix=data/deep/x"),
        ("s3.internal/train?prefix=data/..", "prefix=data/.."),
        ("s3.internal/train?prefix=data/../private", "refused invalid"),
        ("s3.internal/train?prefix=database", "refused outside-prefix"),
        ("s3.internal/train?prefix=/data/", "refused outside-prefix"),
        ("s3.internal/train?prefix=private/", "refused outside-prefix"),
        ("s3.internal/train?prefix=data%252F", "refused outside-prefix"),
        ("s3.internal/train?prefix=data/&prefix=private/", "refused invalid"),
        ("s3.internal/train?prefix=data/&%70refix=private/", "refused invalid"),
        ("s3.internal/train?Prefix=private/", "refused unknown"),
        ("s3.internal/train?delimiter=/", "prefix=data/&delimiter=/"),
        ("s3.internal/train?delimiter=a", "prefix=data/&delimiter=a"),
        ("s3.internal/train?marker=private/x", "prefix=data/&marker=private/x"),
        ("s3.internal/train?max-keys=5000", "prefix=data/&max-keys=1000"),
        ("s3.internal/train?max-keys=0", "prefix=data/&max-keys=0"),
        ("s3.internal/train?max-keys=-1", "refused invalid"),
        ("s3.internal/train?max-keys=99999999999", "refused invalid"),
        ("s3.internal/train?encoding-type=xml", "refused invalid"),
        ("s3.internal/train?list-type=2&start-after=a&fetch-owner=true", "list-type=2&prefix=data/&start-after=a"),
        ("s3.internal/train?list-type=2&continuation-token=abc", "refused invalid"),
        ("s3.internal/train?list-type=2&continuation-token=", "refused invalid"),
        ("s3.internal/train?uploads", "uploads=&prefix=data/"),
        (
            "s3.internal/train?uploads&key-marker=a&upload-id-marker=u",
            "uploads=&prefix=data/&key-marker=a&upload-id-marker=u",
        ),
        ("s3.internal/train?uploads&prefix=private/", "refused outside-prefix"),
        ("r2.internal/LOGS?prefix=x", "prefix=2024/x"),
        ("r2.internal/LOGS?list-type=2&start-after=x", "list-type=2&prefix=2024/&start-after=2024/x"),
        ("r2.internal/LOGS?prefix=../2023", "refused invalid"),
    ] {
        check_list(query, expected);
    }
}

#[test]
fn answers_show_nothing_outside() {
    let world = world();
    let answer = "<ListBucketResult><Name>train</Name><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>tok/en=</NextContinuationToken><Owner><ID>123456789012</ID></Owner>\
        <Contents><Key>data/a%20b</Key><Size>1</Size><ETag>&quot;e&quot;</ETag>\
        <LastModified>2024-01-01T00:00:00.000Z</LastModified>\
        <Owner><ID>123456789012</ID></Owner></Contents><Contents><Key>private/x</Key><Size>1</Size></Contents>\
        <CommonPrefixes><Prefix>data/c/</Prefix></CommonPrefixes>\
        <CommonPrefixes><Prefix>private/</Prefix></CommonPrefixes>\
        </ListBucketResult>";
    let line = "GET s3.internal/train?list-type=2&delimiter=/";
    let text = |forward: &crate::Forward| {
        let text = forward.rewrite_answer(answer.as_bytes()).unwrap().unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    };
    let shown = text(&world.forward(line, &[]));
    for hidden in ["private", "123456789012", "Owner", ">tok/en=<"] {
        assert!(!shown.contains(hidden), "{hidden}: {shown}");
    }
    for there in ["<Key>data/a b</Key>", "<Prefix>data/c/</Prefix>", "<KeyCount>2</KeyCount>", "<Name>train</Name>"] {
        assert!(shown.contains(there), "{there}: {shown}");
    }
    // The token goes back to this list of this mount, and to no other.
    let token = shown.split("<NextContinuationToken>").nth(1).unwrap().split('<').next().unwrap().to_owned();
    let token = sandpail_s3::address::encode_query(&token);
    let forward = world.forward(&format!("{line}&continuation-token={token}"), &[]);
    assert!(forward.permit.query().contains(&("continuation-token".into(), "tok/en=".into())));
    for other in [
        "s3.internal/train?list-type=2",
        "s3.internal/train?list-type=2&delimiter=/&prefix=data/deep/",
        "s3.internal/models?list-type=2&delimiter=/",
    ] {
        check(&format!("GET {other}&continuation-token={token}"), &[], "refused invalid");
    }
    // Below the prefix, and encoded, as asked for.
    let answer = answer.replace("data/", "2024/");
    let forward = world.forward("GET r2.internal/LOGS?encoding-type=url", &[]);
    let answer = answer
        .replace("tok/en=</NextContinuationToken>", "x</NextContinuationToken><NextMarker>2024/a%20b</NextMarker>");
    let text = forward.rewrite_answer(answer.as_bytes()).unwrap().unwrap();
    let shown = String::from_utf8(text.to_vec()).unwrap();
    for there in [
        "<Key>a%20b</Key>",
        "<Prefix>c/</Prefix>",
        "<Prefix></Prefix>",
        "<Name>LOGS</Name>",
        "<NextMarker>a%20b</NextMarker>",
    ] {
        assert!(shown.contains(there), "{there}: {shown}");
    }
    assert!(!shown.contains("2024/"), "{shown}");
}

#[test]
fn a_name_that_no_document_can_hold_hides_no_others() {
    let world = world();
    let answer = "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>\
        <Contents><Key>data/a</Key></Contents><Contents><Key>data/b%00</Key></Contents></ListBucketResult>";
    for (query, shown) in [("", &["data/a"][..]), ("&encoding-type=url", &["data/a", "data/b%00"])] {
        let forward = world.forward(&format!("GET s3.internal/train?list-type=2{query}"), &[]);
        let text = forward.rewrite_answer(answer.as_bytes()).unwrap().unwrap();
        let root = sandpail_s3::xml::Element::parse(&text).unwrap();
        let keys: Vec<_> = root.children("Contents").filter_map(|contents| contents.text_of("Key")).collect();
        assert_eq!(keys, shown);
    }
}

#[test]
fn other_answers() {
    let world = world();
    let text = |line: &str, headers: &[(&str, &str)], answer: &str| {
        let text = world.forward(line, headers).rewrite_answer(answer.as_bytes()).unwrap().unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    };
    let shown = text(
        "POST r2.internal/LOGS/a?uploadId=u",
        &[],
        "<CompleteMultipartUploadResult>\
         <Location>https://acct.r2.example/logs-real/2024/a</Location><Bucket>logs-real</Bucket>\
         <Key>2024/a</Key><ETag>e</ETag></CompleteMultipartUploadResult>",
    );
    assert!(
        shown.contains("<Location>http://r2.internal/LOGS/a</Location><Bucket>LOGS</Bucket><Key>a</Key>"),
        "{shown}"
    );
    assert!(!shown.contains("acct") && !shown.contains("2024"), "{shown}");
    let shown = text(
        "POST r2.internal/LOGS?delete",
        &[],
        "<DeleteResult><Deleted><Key>2024/a</Key></Deleted><Deleted><Key>2023/b</Key></Deleted><Error><Key>2024/c</Key>\
         <Code>AccessDenied</Code><Message>arn:aws:iam::1:user</Message></Error></DeleteResult>",
    );
    assert!(
        shown.contains("<Deleted><Key>a</Key></Deleted>") && shown.contains("<Key>c</Key><Code>AccessDenied</Code>"),
        "{shown}"
    );
    assert!(!shown.contains("2023") && !shown.contains("arn:"), "{shown}");
    let shown = text(
        "GET s3.internal/train/data/a?uploadId=u",
        &[],
        "<ListPartsResult><Owner><ID>1</ID></Owner><Key>data/a</Key>\
         <Part><PartNumber>1</PartNumber><ETag>e</ETag></Part></ListPartsResult>",
    );
    assert!(shown.contains("<Key>data/a</Key><UploadId>u</UploadId>") && !shown.contains("Owner"), "{shown}");
    let parts = world.forward("GET s3.internal/train/data/a?uploadId=u", &[]);
    let foreign = b"<ListPartsResult><Key>private/x</Key><UploadId>u</UploadId></ListPartsResult>";
    assert!(parts.rewrite_answer(foreign).is_err(), "another key's upload");
    let copy = world.forward("PUT s3.internal/train/data/a", &[("x-amz-copy-source", "train/data/b")]);
    let error = copy.rewrite_answer(b"<Error><Code>SlowDown</Code></Error>").unwrap().unwrap_err();
    assert_eq!(ErrorAnswer::from_document(&error).status.as_u16(), 503);
    for wrong in [&b""[..], b"<html/>", b"<ListBucketResult/>", b"<!DOCTYPE x><CopyObjectResult/>"] {
        assert!(copy.rewrite_answer(wrong).is_err());
    }
}

#[test]
fn deletes_of_many() {
    let world = world();
    let delete = |line: &str, keys: &[&str]| {
        let keys: String = keys.iter().map(|key| format!("<Object><Key>{key}</Key></Object>")).collect();
        let mut forward = world.forward(line, &[]);
        let rewritten = forward.rewrite_body(format!("<Delete>{keys}</Delete>").as_bytes());
        let body = rewritten.map(|rewritten| String::from_utf8(rewritten.body.to_vec()).unwrap());
        (forward.route.spec().id.clone(), body.map_err(|denied| denied.rule()))
    };
    let line = "POST s3.internal/train?delete";
    assert_eq!(delete(line, &["data/a", "private/b"]).1, Err("outside-prefix"));
    assert_eq!(delete(line, &["data"]).1, Err("outside-prefix"));
    assert_eq!(delete(line, &["data/../x"]).1, Err("invalid"));
    let (mount, body) = delete(line, &["data/a", "data/deep/b", "data/a"]);
    assert_eq!(mount, "m1");
    assert_eq!(body.unwrap().matches("<Object>").count(), 3);
    assert_eq!(delete(line, &["data/deep/b"]).0, "m6");
    assert!(delete("POST r2.internal/LOGS?delete", &["x"]).1.unwrap().contains("<Key>2024/x</Key>"));
    // The body's own checksum is looked at.
    let forward = world.forward(line, &[("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="), ("content-length", "3")]);
    let mut check = forward.body_check();
    check.push("abc".into(), &mut Vec::new()).unwrap();
    assert_eq!(check.finish().unwrap_err().rule(), "digest");
    let huge = call(line, &[("content-length", "3000000")]).signed(world.now);
    assert_eq!(world.outcome(&huge), "refused too-large");
}

#[test]
fn headers_that_change_the_meaning() {
    for (name, value, expected) in [
        ("x-amz-acl", "private", "m1 PutObject data/a"),
        ("x-amz-acl", "public-read", "refused operation"),
        ("x-amz-grant-read", "uri=http://acs.amazonaws.com/groups/global/AllUsers", "refused operation"),
        ("x-amz-website-redirect-location", "https://evil.org", "refused operation"),
        ("x-amz-object-lock-mode", "COMPLIANCE", "refused operation"),
        ("x-amz-bypass-governance-retention", "true", "refused operation"),
        ("x-amz-expected-bucket-owner", "123456789012", "refused operation"),
        ("x-amz-request-payer", "requester", "refused operation"),
        ("x-amz-tagging", "a=b", "refused operation"),
        ("x-amz-security-token", "token", "refused signature"),
        ("x-amz-new-thing", "1", "refused unknown"),
    ] {
        check("PUT s3.internal/train/data/a", &[(name, value)], expected);
    }
}

#[test]
fn signatures() {
    let world = world();
    let get = |now| call("GET s3.internal/train/data/a", &[]).signed(now);
    let minutes = |count: u64| Duration::from_secs(count * 60);
    assert_eq!(world.outcome(&get(world.now - minutes(14))), "m1 GetObject data/a");
    assert_eq!(world.outcome(&get(world.now + minutes(14))), "m1 GetObject data/a");
    assert_eq!(world.outcome(&get(world.now - minutes(16))), "refused signature");
    assert_eq!(world.outcome(&get(world.now + minutes(16))), "refused signature");
    assert_eq!(world.outcome(&call("GET s3.internal/train/data/a", &[]).unsigned()), "refused signature");
    assert_eq!(world.outcome(&call("GET r2.internal/OPEN/a", &[]).unsigned()), "m4 GetObject a");
    assert_eq!(world.outcome(&call("GET r2.internal/LOGS/a", &[]).unsigned()), "refused signature");
    assert_eq!(world.outcome(&call("GET s3.internal/", &[]).unsigned()), "local ListBuckets");
    let google = Call { dialect: &sandpail_s3::sign::goog4::GOOG4, ..call("GET s3.internal/train/data/a", &[]) };
    assert_eq!(world.outcome(&google.signed(world.now)), "m1 GetObject data/a");

    let other = Call { secret: "another".into(), ..call("GET r2.internal/OPEN/a", &[]) };
    assert_eq!(world.outcome(&other.signed(world.now)), "refused signature");

    // What was signed is what came.
    let with = |change: &dyn Fn(&mut http::request::Parts)| {
        let mut parts = call("PUT s3.internal/train/data/a", &[("x-amz-meta-a", "1")]).signed(world.now);
        change(&mut parts);
        world.outcome(&parts)
    };
    assert_eq!(with(&|_| {}), "m1 PutObject data/a");
    assert_eq!(with(&|parts| parts.method = http::Method::DELETE), "refused signature");
    assert_eq!(with(&|parts| parts.uri = "/train/data/b".parse().unwrap()), "refused signature");
    assert_eq!(with(&|parts| parts.uri = "/train/data/a?uploads".parse().unwrap()), "refused signature");
    assert_eq!(with(&|parts| _ = parts.headers.insert("x-amz-meta-a", "2".parse().unwrap())), "refused signature");
    assert_eq!(with(&|parts| _ = parts.headers.insert("x-amz-meta-b", "2".parse().unwrap())), "refused signature");
    assert_eq!(
        with(&|parts| _ = parts.headers.insert("x-amz-copy-source", "/train/data/b".parse().unwrap())),
        "refused signature"
    );
    assert_eq!(
        with(&|parts| _ = parts.headers.insert("x-goog-copy-source", "/train/data/b".parse().unwrap())),
        "refused signature"
    );
    assert_eq!(with(&|parts| _ = parts.headers.remove("x-amz-meta-a")), "refused signature");
    assert_eq!(
        with(&|parts| _ = parts.headers.append("x-amz-date", "20200101T000000Z".parse().unwrap())),
        "refused signature"
    );
    assert_eq!(with(&|parts| _ = parts.headers.insert("host", "s3.internal:80".parse().unwrap())), "refused signature");
    assert_eq!(with(&|parts| _ = parts.headers.append("host", "s3.internal".parse().unwrap())), "refused malformed");
    let again = |parts: &mut http::request::Parts| {
        let value = parts.headers["authorization"].clone();
        parts.headers.append("authorization", value);
    };
    assert_eq!(with(&again), "refused signature");
    for (from, to) in [
        ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
        ("AWS4-HMAC-SHA256", "AWS"),
        ("/s3/", "/sts/"),
        ("/aws4_request", "/aws5_request"),
        ("SPDUMMY", "AKIAOTHER"),
        ("host;", ""),
        ("host;x-amz-content-sha256", "x-amz-content-sha256;host"),
        ("host;", "host;host;"),
        ("Signature=", "Signature=0"),
        ("Signature=", "Signature=&"),
    ] {
        let change = |parts: &mut http::request::Parts| {
            let value = parts.headers["authorization"].to_str().unwrap().replacen(from, to, 1);
            parts.headers.insert("authorization", value.parse().unwrap());
        };
        assert_eq!(with(&change), "refused signature", "{from} -> {to}");
    }
}

#[test]
fn presigned_urls() {
    let world = world();
    let plain = call("GET s3.internal/train/data/a%20b", &[]);
    let outcome = |call: &Call| world.outcome(&call.unsigned());
    let hour = Duration::from_secs(3600);
    assert_eq!(outcome(&plain.presigned(world.now, 60)), "m1 GetObject data/a b");
    assert_eq!(outcome(&plain.presigned(world.now - hour, 3601)), "m1 GetObject data/a b");
    assert_eq!(outcome(&plain.presigned(world.now - hour, 3599)), "refused signature");
    assert_eq!(outcome(&plain.presigned(world.now + hour, 3600)), "refused signature");
    assert_eq!(outcome(&plain.presigned(world.now, 604_800)), "m1 GetObject data/a b");
    assert_eq!(outcome(&plain.presigned(world.now, 604_801)), "refused signature");
    assert_eq!(outcome(&plain.presigned(world.now, 0)), "refused signature");
    let google = Call { dialect: &sandpail_s3::sign::goog4::GOOG4, ..plain.clone() };
    assert_eq!(outcome(&google.presigned(world.now, 60)), "m1 GetObject data/a b");
    let other = Call { secret: "another".into(), ..plain.clone() };
    assert_eq!(outcome(&other.presigned(world.now, 60)), "refused signature");
    let outside = call("GET s3.internal/train/private/a", &[]);
    assert_eq!(outcome(&outside.presigned(world.now, 60)), "refused outside-prefix");
    assert_eq!(outcome(&call("PUT s3.internal/models/a", &[]).presigned(world.now, 60)), "refused read-only");
    assert_eq!(outcome(&call("GET s3.internal/train/data/a?acl", &[]).presigned(world.now, 60)), "refused operation");

    let good = plain.presigned(world.now, 60);
    // Signed twice, in the header and in the query.
    assert_eq!(world.outcome(&good.signed(world.now)), "refused signature");
    // Headers that were not signed.
    for (name, value) in [("x-amz-acl", "private"), ("x-amz-copy-source", "/train/data/b"), ("x-goog-acl", "private")] {
        let mut parts = good.unsigned();
        parts.headers.insert(name, value.parse().unwrap());
        assert_eq!(world.outcome(&parts), "refused signature", "{name}");
    }
    let mut parts = good.unsigned();
    parts.headers.insert("range", "bytes=0-1".parse().unwrap());
    assert_eq!(world.outcome(&parts), "m1 GetObject data/a b");
    for (from, to) in [
        ("X-Amz-Expires=60", "X-Amz-Expires=61"),
        ("X-Amz-Expires=60", "X-Amz-Expires=+60"),
        ("X-Amz-Expires=60&", ""),
        ("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders="),
        ("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=host%3Brange"),
        ("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=Host"),
        ("X-Amz-Date=", "X-Amz-Date=1"),
        ("X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Algorithm=none"),
        ("X-Amz-Credential=", "x-amz-signature=0&X-Amz-Credential="),
        ("X-Amz-Credential=", "X-Goog-Credential=0&X-Amz-Credential="),
        ("X-Amz-Credential=", "X-Amz-Security-Token=0&X-Amz-Credential="),
        ("X-Amz-Credential=", "AWSAccessKeyId=0&X-Amz-Credential="),
        ("a%20b", "c"),
    ] {
        let changed = Call { target: good.target.replacen(from, to, 1), ..good.clone() };
        assert_ne!(changed.target, good.target, "{from}");
        assert_eq!(outcome(&changed), "refused signature", "{from} -> {to}");
    }
    // SDKs put headers into the query: they count as headers.
    let hoisted = call("PUT s3.internal/train/data/a?x-amz-meta-b=1&x-amz-checksum-mode=ENABLED&x-id=PutObject", &[]);
    let Ok(Decision::Forward(forward)) = world.decide(&hoisted.presigned(world.now, 60).unsigned()) else { panic!() };
    assert_eq!(forward.headers["x-amz-meta-b"], "1");
    let hoisted = call("PUT s3.internal/train/data/a?x-amz-acl=public-read", &[]);
    assert_eq!(outcome(&hoisted.presigned(world.now, 60)), "refused operation");
    let hoisted = call("PUT s3.internal/train/data/a?x-amz-copy-source=%2Ftrain%2Fprivate%2Fb", &[]);
    assert_eq!(outcome(&hoisted.presigned(world.now, 60)), "refused outside-prefix");
    // Without a signature in the query, they are unknown parameters.
    check("PUT s3.internal/train/data/a?x-amz-meta-b=1", &[], "refused unknown");
    check("PUT s3.internal/train/data/a?X-Amz-Credential=1", &[], "refused unknown");
}

#[test]
fn bodies_are_announced() {
    let world = world();
    let rule = |line: &str, headers: &[(&str, &str)], payload: &str| match world
        .decide_call(&call(line, headers).payload(payload))
    {
        Ok(Decision::Forward(forward)) => Ok(forward.body),
        Ok(_) => panic!("{line}"),
        Err(denied) => Err(denied.rule()),
    };
    let put = "PUT s3.internal/train/data/a";
    let unsigned = "UNSIGNED-PAYLOAD";
    assert_eq!(rule(put, &[("content-length", "7")], unsigned), Ok(BodyRule::Stream { len: 7 }));
    assert_eq!(rule(put, &[], unsigned), Ok(BodyRule::Stream { len: 0 }));
    assert_eq!(rule(put, &[("transfer-encoding", "chunked")], unsigned), Err("length-required"));
    assert_eq!(rule(put, &[("content-length", "5368709121")], unsigned), Err("too-large"));
    let streaming = [
        ("transfer-encoding", "chunked"),
        ("x-amz-decoded-content-length", "9"),
        ("x-amz-trailer", "x-amz-checksum-crc32"),
    ];
    assert_eq!(rule(put, &streaming, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"), Ok(BodyRule::Stream { len: 9 }));
    assert_eq!(rule(put, &streaming[..1], "STREAMING-UNSIGNED-PAYLOAD-TRAILER"), Err("length-required"));
    assert_eq!(rule(put, &streaming, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), Err("invalid"));
    assert_eq!(rule(put, &streaming[..2], "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), Ok(BodyRule::Stream { len: 9 }));
    assert_eq!(rule(put, &streaming, "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"), Err("invalid"));
    assert_eq!(rule(put, &[], "0123"), Err("invalid"));
    let bad_trailer = [("x-amz-decoded-content-length", "9"), ("x-amz-trailer", "authorization")];
    assert_eq!(rule(put, &bad_trailer, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"), Err("invalid"));
    let bad_len = [("x-amz-decoded-content-length", "+9")];
    assert_eq!(rule(put, &bad_len, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"), Err("invalid"));
    let get = "GET s3.internal/train/data/a";
    assert_eq!(rule(get, &[("content-length", "0")], unsigned), Ok(BodyRule::Empty));
    assert_eq!(rule(get, &[("content-length", "1")], unsigned), Err("invalid"));
    assert_eq!(rule(get, &[("transfer-encoding", "chunked")], unsigned), Err("length-required"));
    assert_eq!(rule(get, &[], &"0".repeat(64)), Err("digest"));
    assert_eq!(rule(get, &streaming, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"), Err("invalid"));
}

#[test]
fn what_is_told_of_a_refusal_holds_nothing_of_the_guest_or_of_keys() {
    let world = world();
    let parts = call("GET s3.internal/train/secret-name", &[]).signed(world.now);
    let denied = world.decide(&parts).unwrap_err();
    let answer = ErrorAnswer::from(&denied).response(false, "r1");
    let text = std::str::from_utf8(answer.body()).unwrap();
    assert!(
        text.contains("<Code>AccessDenied</Code>") && text.contains("the key is outside the mount&apos;s prefix"),
        "{text}"
    );
    assert!(!text.contains("secret-name") && !text.contains("SPDUMMY"), "{text}");
    let debug = format!("{:?} {:?}", world.guest.key(), world.forward("GET s3.internal/train?list-type=2", &[]));
    assert!(!debug.contains(crate::testing::SECRET), "{debug}");
}
