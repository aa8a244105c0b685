//! What happens to packets of a sandbox: an address to come from, a way that leads to `lo` and nowhere else, and nftables
//! rules that send TCP and questions for names to the daemon's sockets and refuse everything else at once.
//!
//! ```text
//! to 127.0.0.0/8                  left alone
//! UDP to port 53, of any address  ─► the daemon's name server
//! TCP, to any address and port    ─► the daemon's listener
//! anything else                   refused: EPERM for the sender, with an ICMP message
//! ```
//!
//! There is no route for IPv6 beyond `::1`, so it fails at once by itself. The namespace belongs to the host's user
//! namespace, so nobody inside can change any of this.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::netlink;

use super::SOURCE;
use super::netlink::{APPEND, Attributes, CREATE, REPLACE, Requests};

/// The first interface of each namespace is the loopback.
const LOOPBACK_INDEX: u32 = 1;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;

/// Brings `lo` up.
///
/// # Errors
/// The kernel's.
pub(crate) fn open_loopback() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const IFF_UP: u32 = 1;
    let mut requests = Requests::default();
    // `ifinfomsg`: family, padding, type, index, flags, which flags change.
    let head = [[AF_UNSPEC, 0, 0, 0], LOOPBACK_INDEX.to_ne_bytes(), IFF_UP.to_ne_bytes(), IFF_UP.to_ne_bytes()];
    requests.add(RTM_NEWLINK, 0, &head.concat(), Some("bringing the loopback up"), |_| {});
    requests.send(None).map(drop)
}

/// Gives the namespace an address, and a way for every packet.
///
/// # Errors
/// The kernel's.
pub(super) fn open_way() -> io::Result<()> {
    const RTM_NEWADDR: u16 = 20;
    const RTM_NEWROUTE: u16 = 24;
    let mut requests = Requests::default();
    // `ifaddrmsg`: family, length of the prefix, flags, scope, index.
    let head = [[AF_INET, 32, 0, 0], LOOPBACK_INDEX.to_ne_bytes()].concat();
    requests.add(RTM_NEWADDR, CREATE | REPLACE, &head, Some("an address of the loopback"), |to| {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        to.bytes(IFA_ADDRESS, &SOURCE.octets()).bytes(IFA_LOCAL, &SOURCE.octets());
    });
    // `rtmsg`: family, two lengths, tos, table "main", protocol "static", scope "link", type "unicast", flags.
    let head = [AF_INET, 0, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0];
    requests.add(RTM_NEWROUTE, CREATE | REPLACE, &head, Some("a route"), |to| {
        const RTA_OIF: u16 = 4;
        const RTA_PREFSRC: u16 = 7;
        to.bytes(RTA_OIF, &LOOPBACK_INDEX.to_ne_bytes()).bytes(RTA_PREFSRC, &SOURCE.octets());
    });
    requests.send(None).map(drop)
}

/// Ports of the daemon's sockets on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) connections: u16,
    pub(super) names: u16,
}

/// Replaces the rules by those for these ports, in one step. Closing the socket that is returned takes some 10 ms, as the
/// kernel then waits until nobody uses the old rules any more.
///
/// # Errors
/// The kernel's.
pub(super) fn replace(ports: Ports) -> io::Result<OwnedFd> {
    const BATCH_BEGIN: u16 = 0x10;
    const BATCH_END: u16 = 0x11;
    const NEW_TABLE: u16 = 0;
    const DELETE_TABLE: u16 = 2;
    let mut requests = Requests::default();
    let batch = [&[AF_UNSPEC, 0][..], &SUBSYSTEM.to_be_bytes()].concat();
    requests.add(BATCH_BEGIN, 0, &batch, None, |_| {});
    // Deleting needs one that is there.
    for (kind, what) in
        [(NEW_TABLE, "nftables: a table"), (DELETE_TABLE, "nftables: the old table"), (NEW_TABLE, "nftables: a table")]
    {
        add(&mut requests, kind, CREATE, what, |to| {
            const TABLE_NAME: u16 = 1;
            to.text(TABLE_NAME, TABLE);
        });
    }
    for chain in [RAW, NAT, FILTER] {
        chain.add(&mut requests);
    }
    // Connections within the loopback need no tracking; it would cost them time and the host memory.
    rule(&mut requests, RAW, |list| {
        list.first_byte_is(Field::Source, 127).first_byte_is(Field::Destination, 127).named("notrack", |_| {});
    });
    rule(&mut requests, NAT, |list| {
        list.first_byte_is(Field::Destination, 127).verdict(ACCEPT);
    });
    rule(&mut requests, NAT, |list| {
        list.protocol_is(UDP).port_is(53).redirect(ports.names);
    });
    rule(&mut requests, NAT, |list| {
        list.protocol_is(TCP).redirect(ports.connections);
    });
    rule(&mut requests, FILTER, |list| {
        list.first_byte_is(Field::Destination, 127).verdict(ACCEPT);
    });
    // Answers of the daemon's sockets.
    rule(&mut requests, FILTER, |list| {
        list.address_is(Field::Destination, SOURCE).verdict(ACCEPT);
    });
    rule(&mut requests, FILTER, |list| {
        list.reject();
    });
    requests.add(BATCH_END, 0, &batch, None, |_| {});
    requests.send(Some(netlink::NETFILTER))
}

const TABLE: &str = "sandpail";
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const ACCEPT: u32 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

#[derive(Clone, Copy, Debug)]
struct Chain {
    name: &'static str,
    kind: &'static str,
    priority: i32,
}

const RAW: Chain = Chain { name: "raw", kind: "filter", priority: -300 };
const NAT: Chain = Chain { name: "nat", kind: "nat", priority: -100 };
const FILTER: Chain = Chain { name: "filter", kind: "filter", priority: 0 };

impl Chain {
    fn add(self, requests: &mut Requests) {
        const NEW_CHAIN: u16 = 3;
        const CHAIN_TABLE: u16 = 1;
        const CHAIN_NAME: u16 = 3;
        const CHAIN_HOOK: u16 = 4;
        const CHAIN_TYPE: u16 = 7;
        const HOOK_NUMBER: u16 = 1;
        const HOOK_PRIORITY: u16 = 2;
        /// `NF_INET_LOCAL_OUT`: all that processes of the namespace send.
        const LOCAL_OUT: u32 = 3;
        let what = format!("nftables: the chain {} (the kernel needs nf_tables with NAT and conntrack)", self.name);
        add(requests, NEW_CHAIN, CREATE, &what, |to| {
            to.text(CHAIN_TABLE, TABLE).text(CHAIN_NAME, self.name).text(CHAIN_TYPE, self.kind);
            to.nested(CHAIN_HOOK, |to| {
                to.number(HOOK_NUMBER, LOCAL_OUT).bytes(HOOK_PRIORITY, &self.priority.to_be_bytes());
            });
        });
    }
}

fn add(requests: &mut Requests, kind: u16, flags: u16, what: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    // `nfgenmsg`: family, version, resource.
    requests.add(SUBSYSTEM << 8 | kind, flags, &[AF_INET, 0, 0, 0], Some(what), fill);
}

fn rule(requests: &mut Requests, chain: Chain, fill: impl FnOnce(&mut Expressions<'_, '_>)) {
    const NEW_RULE: u16 = 6;
    const RULE_TABLE: u16 = 1;
    const RULE_CHAIN: u16 = 2;
    const RULE_EXPRESSIONS: u16 = 4;
    let what = format!("nftables: a rule of the chain {}", chain.name);
    add(requests, NEW_RULE, CREATE | APPEND, &what, |to| {
        to.text(RULE_TABLE, TABLE).text(RULE_CHAIN, chain.name);
        to.nested(RULE_EXPRESSIONS, |to| fill(&mut Expressions { to }));
    });
}

/// An address in a packet's head.
#[derive(Clone, Copy, Debug)]
enum Field {
    Source = 12,
    Destination = 16,
}

/// What a rule asks, in that order, and what it does.
struct Expressions<'a, 'b> {
    to: &'a mut Attributes<'b>,
}

/// The register that values are compared in.
const REGISTER: u32 = 1;
const REGISTER_OF_VERDICT: u32 = 0;
const DATA_VALUE: u16 = 1;
const NETWORK_HEAD: u32 = 1;
const TRANSPORT_HEAD: u32 = 2;

impl Expressions<'_, '_> {
    fn named(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        const LIST_ELEMENT: u16 = 1;
        const EXPRESSION_NAME: u16 = 1;
        const EXPRESSION_DATA: u16 = 2;
        self.to.nested(LIST_ELEMENT, |to| {
            to.text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, fill);
        });
        self
    }

    fn payload_is(&mut self, head: u32, offset: u32, value: &[u8]) -> &mut Self {
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.named("payload", |to| {
            to.number(1, REGISTER).number(2, head).number(3, offset).number(4, len);
        });
        self.is(value)
    }

    fn is(&mut self, value: &[u8]) -> &mut Self {
        const EQUAL: u32 = 0;
        self.named("cmp", |to| {
            to.number(1, REGISTER).number(2, EQUAL).nested(3, |to| {
                to.bytes(DATA_VALUE, value);
            });
        })
    }

    fn first_byte_is(&mut self, field: Field, value: u8) -> &mut Self {
        self.payload_is(NETWORK_HEAD, field as u32, &[value])
    }

    fn address_is(&mut self, field: Field, value: Ipv4Addr) -> &mut Self {
        self.payload_is(NETWORK_HEAD, field as u32, &value.octets())
    }

    fn port_is(&mut self, port: u16) -> &mut Self {
        const DESTINATION_PORT: u32 = 2;
        self.payload_is(TRANSPORT_HEAD, DESTINATION_PORT, &port.to_be_bytes())
    }

    fn protocol_is(&mut self, protocol: u8) -> &mut Self {
        /// `NFT_META_L4PROTO`.
        const PROTOCOL: u32 = 16;
        self.named("meta", |to| {
            to.number(1, REGISTER).number(2, PROTOCOL);
        });
        self.is(&[protocol])
    }

    fn verdict(&mut self, code: u32) -> &mut Self {
        const DATA_VERDICT: u16 = 2;
        const VERDICT_CODE: u16 = 1;
        self.named("immediate", |to| {
            to.number(1, REGISTER_OF_VERDICT).nested(2, |to| {
                to.nested(DATA_VERDICT, |to| {
                    to.number(VERDICT_CODE, code);
                });
            });
        })
    }

    fn redirect(&mut self, port: u16) -> &mut Self {
        self.named("immediate", |to| {
            to.number(1, REGISTER).nested(2, |to| {
                to.bytes(DATA_VALUE, &port.to_be_bytes());
            });
        });
        self.named("redir", |to| {
            to.number(1, REGISTER);
        })
    }

    fn reject(&mut self) -> &mut Self {
        const ICMP_UNREACHABLE: u32 = 0;
        /// "Communication administratively prohibited".
        const PROHIBITED: u8 = 13;
        self.named("reject", |to| {
            to.number(1, ICMP_UNREACHABLE).bytes(2, &[PROHIBITED]);
        })
    }
}
