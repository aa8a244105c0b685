//! What policies let through.

use super::*;

fn policy(json: &str) -> EgressPolicy {
    let policy: EgressPolicy = serde_json::from_str(json).unwrap();
    policy.check().unwrap();
    policy
}

#[track_caller]
fn name(json: &str, name: &str, expected: Result<(), Forbidden>) {
    assert_eq!(policy(json).check_name(name), expected, "{json} {name}");
}

#[track_caller]
fn of_name(json: &str, address: &str, expected: Result<(), Forbidden>) {
    assert_eq!(policy(json).check_address_of_name(address.parse().unwrap()), expected, "{json} {address}");
}

#[track_caller]
fn raw(json: &str, address: &str, expected: Result<(), Forbidden>) {
    assert_eq!(policy(json).check_raw_address(address.parse().unwrap()), expected, "{json} {address}");
}

const INTERNET: &str = r#"{"enableInternet":true}"#;
const EVERYTHING: &str = r#"{"enableInternet":true,"allowedHosts":["*","0.0.0.0/0","::/0"]}"#;

#[test]
fn nothing_is_the_default() {
    name("{}", "example.com", Err(Forbidden::NoInternet));
    raw("{}", "1.1.1.1", Err(Forbidden::NoInternet));
    name(r#"{"deniedHosts":["x.com"]}"#, "example.com", Err(Forbidden::NoInternet));
}

#[test]
fn names() {
    name(INTERNET, "example.com", Ok(()));
    name(r#"{"enableInternet":true,"deniedHosts":["*.evil.org"]}"#, "a.evil.org", Err(Forbidden::Denied));
    name(r#"{"enableInternet":true,"deniedHosts":["*.evil.org"]}"#, "example.com", Ok(()));
    // A list makes it deny by default, whatever else is said.
    for rest in ["", r#","enableInternet":true"#, r#","outboundByHost":{"api.x":{"headers":{"a":"b"}}}"#] {
        let json = format!(r#"{{"allowedHosts":["*.example.com"]{rest}}}"#);
        name(&json, "a.example.com", Ok(()));
        name(&json, "example.com", Err(Forbidden::NotAllowed));
        name(&json, "api.x", Err(Forbidden::NotAllowed));
    }
    // Deny wins.
    let both = r#"{"allowedHosts":["*.example.com"],"deniedHosts":["secret.example.com"]}"#;
    name(both, "secret.example.com", Err(Forbidden::Denied));
    name(both, "open.example.com", Ok(()));
    // Ranges name no names.
    name(r#"{"allowedHosts":["10.0.0.0/8"]}"#, "example.com", Err(Forbidden::NotAllowed));
    let outbound = r#"{"outboundByHost":{"api.x":{"headers":{"a":"b"}}}}"#;
    name(outbound, "api.x", Ok(()));
    name(outbound, "other.x", Err(Forbidden::NoInternet));
    let denied = r#"{"deniedHosts":["api.x"],"outboundByHost":{"api.x":{"headers":{"a":"b"}}}}"#;
    name(denied, "api.x", Err(Forbidden::Denied));
}

#[test]
fn never_reached() {
    for address in [
        "127.0.0.1",
        "127.255.255.255",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "169.254.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "198.19.255.255",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::2",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        // Forms of IPv4 addresses.
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b::127.0.0.1",
        "64:ff9b:1:2:3:4:169.254.169.254",
        "2002:a9fe:a9fe::1",
        "2002:7f00:1::",
        "2001:0:1:2:3:4:5601:5601",
    ] {
        for json in
            ["{}", INTERNET, EVERYTHING, r#"{"allowedHosts":["169.254.0.0/16","127.0.0.0/8","::1","fd00::/8"]}"#]
        {
            of_name(json, address, Err(Forbidden::Address));
            raw(json, address, Err(Forbidden::Address));
        }
    }
}

#[test]
fn private_addresses_need_a_range() {
    for address in [
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "192.0.2.1",
        "fc00::1",
        "fd12:3456::1",
        "2001:db8::1",
        "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "2002:a00:1::",
        "5f00::1",
    ] {
        for json in [INTERNET, r#"{"allowedHosts":["*"]}"#] {
            of_name(json, address, Err(Forbidden::Private));
            raw(json, address, Err(Forbidden::Private));
        }
    }
    let range = r#"{"allowedHosts":["intranet.corp","10.1.0.0/16","fd12::/16"]}"#;
    for (address, expected) in [("10.1.2.3", true), ("10.2.2.3", false), ("fd12::1", true), ("::ffff:10.1.2.3", true)] {
        of_name(range, address, if expected { Ok(()) } else { Err(Forbidden::Private) });
        raw(range, address, if expected { Ok(()) } else { Err(Forbidden::NotAllowed) });
    }
    let denied = r#"{"allowedHosts":["*","10.0.0.0/8"],"deniedHosts":["10.9.0.0/16","8.8.8.8"]}"#;
    for (address, expected) in [
        ("10.9.1.1", Err(Forbidden::Denied)),
        ("8.8.8.8", Err(Forbidden::Denied)),
        ("::ffff:8.8.8.8", Err(Forbidden::Denied)),
        ("64:ff9b::8.8.8.8", Err(Forbidden::Denied)),
        ("10.8.1.1", Ok(())),
        ("8.8.4.4", Ok(())),
    ] {
        of_name(denied, address, expected);
        raw(denied, address, expected);
    }
}

#[test]
fn raw_addresses() {
    raw(INTERNET, "1.1.1.1", Ok(()));
    raw(INTERNET, "2606:4700::1111", Ok(()));
    raw(r#"{"allowedHosts":["*"]}"#, "1.1.1.1", Ok(()));
    raw(r#"{"allowedHosts":["example.com"],"enableInternet":true}"#, "1.1.1.1", Err(Forbidden::NotAllowed));
    // Denied names could be dodged by their addresses.
    raw(r#"{"enableInternet":true,"deniedHosts":["evil.org"]}"#, "1.1.1.1", Err(Forbidden::Raw));
    raw(r#"{"allowedHosts":["*","1.1.1.0/24"],"deniedHosts":["evil.org"]}"#, "1.1.1.1", Ok(()));
    raw(r#"{"outboundByHost":{"api.x":{"headers":{}}}}"#, "1.1.1.1", Err(Forbidden::NoInternet));
}

#[test]
fn secrets_are_seen_nowhere_but_where_they_are_kept() {
    let text = r#"{"enableInternet":true,"allowedHosts":["a.b","10.0.0.0/8"],"deniedHosts":[],
        "outboundByHost":{"api.x":{"headers":{"authorization":"Bearer hunter2"},"allowHttp":true}}}"#;
    let policy = policy(text);
    assert!(!format!("{policy:?}").contains("hunter2"));
    let shown = serde_json::to_string(&policy.shown()).unwrap();
    assert!(!shown.contains("hunter2") && shown.contains("authorization"), "{shown}");
    let kept = serde_json::to_string(&policy.kept()).unwrap();
    assert_eq!(serde_json::from_str::<EgressPolicy>(&kept).unwrap(), policy);
}

#[test]
fn the_most_exact_entry_counts() {
    let json = r#"{"outboundByHost":{"*.x":{"headers":{"a":"1"}},"api.x":{"headers":{"a":"2"}},"*":{"headers":{}}}}"#;
    assert!(serde_json::from_str::<EgressPolicy>(json).unwrap_err().to_string().contains("bare *"));
    let json = json.replace(r#","*":{"headers":{}}"#, "");
    let policy = policy(&json);
    assert_eq!(policy.outbound("api.x").unwrap().headers["a"].expose(), "2");
    assert_eq!(policy.outbound("b.x").unwrap().headers["a"].expose(), "1");
    assert_eq!(policy.outbound("x"), None);
}

#[test]
fn nonsense_is_refused_without_its_values() {
    for json in [
        r#"{"enableInternett":true}"#,
        r#"{"allowedHosts":["http://x"]}"#,
        r#"{"outboundByHost":{"10.0.0.1":{"headers":{}}}}"#,
        r#"{"outboundByHost":{"x":{"header":{}}}}"#,
    ] {
        assert!(serde_json::from_str::<EgressPolicy>(json).is_err(), "{json}");
    }
    for header in ["host", "Content-Length", "transfer-encoding", "a b", "", "x\r\ny"] {
        let header = serde_json::to_string(header).unwrap();
        let json = format!(r#"{{"outboundByHost":{{"x":{{"headers":{{{header}:"hunter2"}}}}}}}}"#);
        let error = serde_json::from_str::<EgressPolicy>(&json).unwrap().check().unwrap_err();
        assert!(matches!(error, InvalidPolicy::Header { .. }) && !error.to_string().contains("hunter2"), "{error}");
    }
    let json = r#"{"outboundByHost":{"x":{"headers":{"a":"hunter2\r\nb: c"}}}}"#;
    let error = serde_json::from_str::<EgressPolicy>(json).unwrap().check().unwrap_err();
    assert!(matches!(error, InvalidPolicy::Value { .. }) && !error.to_string().contains("hunter2"), "{error}");
}
