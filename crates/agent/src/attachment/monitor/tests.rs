use super::*;
use crate::attachment::Mac;

// Messages that the kernel sent while `ip` and `bridge` ran the given commands, one per constant.

/// `ip neigh replace 10.2.0.5 lladdr 02:00:00:00:00:05 dev cni0`; cni0 is number 2.
const NEIGHBOUR_V4: &str = "\
    4c0000001c000000000000005e740000020000000200000080000001080001000a0200050a0002000200000000050000\
    08000400000000001400030000000000000000000000000001000000";
/// `ip neigh replace fd02::5 lladdr 02:00:00:00:00:05 dev cni0`
const NEIGHBOUR_V6: &str = "\
    580000001c00000000000000627400000a000000020000008000000114000100fd020000000000000000000000000005\
    0a000200020000000005000008000400000000001400030000000000000000000000000001000000";
/// The same command with `del`, first half: the entry has no MAC address any more.
const NEIGHBOUR_FAILED: &str = "\
    400000001c000000000000006e740000020000000200000020000001080001000a020005080004000000000014000300\
    66000000660000006600000001000000";
/// `ip neigh del 10.2.0.5 dev cni0`
const NEIGHBOUR_GONE: &str = "\
    400000001d0000000000000000000000020000000200000020000001080001000a020005080004000000000014000300\
    66000000660000006600000000000000";
/// `bridge fdb replace 02:00:00:00:00:05 dev veth1 master`; veth1 is number 3, a port of cni0.
const PORT: &str = "\
    4c0000001c00000000000000000000000700000003000000800000000a00020002000000000500000800090002000000\
    08000f00000000001400030000000000000000000000000000000000";
/// `ip route add 10.9.0.5/32 dev cni0`
const ROUTE_V4: &str = "\
    340000001800000635a80c6b7374000002200000fe03fd011000000008000f00fe000000080001000a09000508000400\
    02000000";
/// `ip -6 route add fd09::5/128 dev cni0`
const ROUTE_V6: &str = "\
    740000001800000636a80c6b787400000a800000fe0300011000000008000f00fe00000014000100fd09000000000000\
    00000000000000050800060000040000080004000200000024000c000000000000000000000000000000000000000000\
    0000000000000000000000000500140000000000";
/// `ip route add 10.8.0.0/16 dev cni0`
const ROUTE_OF_A_NETWORK: &str = "\
    340000001800000636a80c6b7c74000002100000fe03fd011000000008000f00fe000000080001000a08000008000400\
    02000000";
/// `ip route add blackhole 10.9.0.6/32`
const ROUTE_NOWHERE: &str = "\
    2c0000001800000636a80c6b8174000002200000fe0300060000000008000f00fe000000080001000a090006";
/// `ip link set veth1 nomaster`, the part about the bridge.
const PORT_LEAVES: &str = "\
    58000000110000000000000000000000070001000300000003100000000000000a000300766574683100000008000a00\
    0200000008000400dc05000005001000020000000a0001008ab0030c655b00000800050002000000";
/// `ip link del veth1`, without the attributes.
const LINK_GONE: &str = "\
    20000000110000000000000000000000000001000300000002100000ffffffff";

const MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn read_all(messages: &[&str]) -> Vec<Event> {
    events(&bytes(&messages.concat()))
}

fn neighbour(addr: &str) -> Event {
    Event::Neighbour {
        addr: addr.parse().unwrap(),
        ifindex: 2,
        mac: MAC,
    }
}

fn route(addr: &str) -> Event {
    Event::Route {
        addr: addr.parse().unwrap(),
        ifindex: 2,
    }
}

#[test]
fn each_kernel_message_maps_to_its_event_or_none() {
    let port = Event::Port {
        mac: MAC,
        bridge: 2,
        port: 3,
    };
    for (message, event) in [
        (NEIGHBOUR_V4, Some(neighbour("10.2.0.5"))),
        (NEIGHBOUR_V6, Some(neighbour("fd02::5"))),
        (NEIGHBOUR_FAILED, None),
        (NEIGHBOUR_GONE, None),
        (PORT, Some(port)),
        (ROUTE_V4, Some(route("10.9.0.5"))),
        (ROUTE_V6, Some(route("fd09::5"))),
        (ROUTE_OF_A_NETWORK, None),
        (ROUTE_NOWHERE, None),
        (PORT_LEAVES, None),
        (LINK_GONE, Some(Event::LinkGone(3))),
    ] {
        let event: Vec<_> = event.into_iter().collect();
        assert_eq!(read_all(&[message]), event, "{message}");
    }
}

#[test]
fn one_reading_may_hold_many_messages() {
    let all = read_all(&[NEIGHBOUR_V4, ROUTE_OF_A_NETWORK, PORT_LEAVES, ROUTE_V6]);
    assert_eq!(all, [neighbour("10.2.0.5"), route("fd09::5")]);
    // Messages are aligned to four bytes, whatever their own length: an attribute with one more
    // byte, and three bytes of padding.
    let longer = format!("35{}0500630001000000", &ROUTE_V4[2..]);
    let longer = longer.replacen("35", "39", 1);
    assert_eq!(
        read_all(&[&longer, ROUTE_V6]),
        [route("10.9.0.5"), route("fd09::5")]
    );
}

#[test]
fn what_cannot_be_read_was_lost() {
    let cut = &ROUTE_V6[..ROUTE_V6.len() - 8];
    assert_eq!(read_all(&[ROUTE_V4, cut]), [route("10.9.0.5"), Event::Lost]);
    assert_eq!(read_all(&["00000000"]), [Event::Lost]);
    // NLMSG_OVERRUN
    let overrun = "10000000040000000000000000000000";
    assert_eq!(
        read_all(&[overrun, ROUTE_V4]),
        [Event::Lost, route("10.9.0.5")]
    );
}
