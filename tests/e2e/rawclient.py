"""A neighbour on the wire that has CAP_NET_RAW and nothing else.

It announces an address that isn't its own, given as an argument, and asks a web server from that address over a TCP of
its own on a packet socket. It prints one JSON object: its capabilities and what came of each try.
"""

import argparse
import ipaddress
import json
import random
import select
import socket
import struct
import sys
import time

SYN, ACK, PSH, RST = 0x02, 0x10, 0x08, 0x04


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


class Neighbour:
    def __init__(self, args):
        self.claim = ipaddress.ip_address(args.claim).packed
        self.target = ipaddress.ip_address(args.target).packed
        self.node = ipaddress.ip_address(args.node).packed
        self.v6 = len(self.claim) == 16
        self.source, self.announced = mac(args.source_mac), mac(args.announce_mac)
        self.node_mac = mac(args.node_mac)
        self.path, self.silent = args.path, args.silent
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind((args.interface, 0))
        self.socket.settimeout(0.02)
        self.announce_at = 0.0

    def send(self, kind, payload, to=None):
        self.socket.send((to or self.node_mac) + self.source + struct.pack("!H", kind) + payload)

    def ip(self, protocol, payload, to):
        if self.v6:
            head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 255)
            return head + self.claim + to + payload
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), random.randrange(65536), 0, 64, protocol, 0)
        head += self.claim + to
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload

    def pseudo(self, protocol, payload, to):
        if self.v6:
            return self.claim + to + struct.pack("!IHBB", len(payload), 0, 0, protocol) + payload
        return self.claim + to + struct.pack("!BBH", 0, protocol, len(payload)) + payload

    def announce(self):
        """By an ARP reply, or a neighbour advertisement that overrides."""
        if self.v6:
            body = struct.pack("!BBHI", 136, 0, 0, 0x60000000) + self.claim + b"\x02\x01" + self.announced
            sum_ = checksum(self.pseudo(58, body, self.node))
            body = body[:2] + struct.pack("!H", sum_) + body[4:]
            self.send(0x86DD, self.ip(58, body, self.node))
        else:
            arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2)
            arp += self.announced + self.claim + self.node_mac + self.node
            self.send(0x0806, arp)

    def tcp(self, port, seq, ack, flags, data=b""):
        segment = struct.pack("!HHIIBBHHH", port, 80, seq, ack, 5 << 4, flags, 64240, 0, 0) + data
        sum_ = checksum(self.pseudo(6, segment, self.target))
        segment = segment[:16] + struct.pack("!H", sum_) + segment[18:]
        self.send(0x86DD if self.v6 else 0x0800, self.ip(6, segment, self.target))

    def asked_for(self, frame):
        """Whether the node asks who has the address."""
        kind = frame[12:14]
        if kind == b"\x08\x06":
            return frame[20:22] == b"\0\x01" and frame[38:42] == self.claim
        return kind == b"\x86\xdd" and frame[20:21] == b"\x3a" and frame[54:55] == b"\x87" and frame[62:78] == self.claim

    def segment(self, frame, port):
        """Flags, sequence number and data of a segment of this connection."""
        if self.v6:
            if frame[12:14] != b"\x86\xdd" or frame[20] != 6 or frame[38:54] != self.claim:
                return None
            start, end = 54, 54 + struct.unpack("!H", frame[18:20])[0]
        else:
            if frame[12:14] != b"\x08\0" or frame[23] != 6 or frame[30:34] != self.claim:
                return None
            start = 14 + (frame[14] & 15) * 4
            end = 14 + struct.unpack("!H", frame[16:18])[0]
        source, dest, seq, _, offset, flags = struct.unpack("!HHIIBB", frame[start : start + 14])
        if source != 80 or dest != port:
            return None
        return flags, seq, frame[start + (offset >> 4) * 4 : end]

    def frames(self, until):
        while (now := time.monotonic()) < until:
            if not self.silent and now >= self.announce_at:
                self.announce_at = now + 0.05
                self.announce()
            try:
                # Its own frames too are seen, the kernel says which.
                frame, where = self.socket.recvfrom(65536)
            except TimeoutError:
                continue
            if where[2] == socket.PACKET_OUTGOING:
                continue
            if self.asked_for(frame):
                self.announce()
            yield frame

    def ask(self, patience):
        port, seq = random.randrange(20000, 60000), random.randrange(1 << 32)
        until = time.monotonic() + patience
        request = f"GET {self.path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n".encode()
        self.announce_at = 0.0
        connected, expected, answer, syn_at = False, 0, b"", 0.0
        for frame in self.frames_and_ticks(until):
            if not connected and time.monotonic() >= syn_at:
                syn_at = time.monotonic() + 0.3
                self.tcp(port, seq, 0, SYN)
            found = frame and self.segment(frame, port)
            if not found:
                continue
            flags, theirs, data = found
            if flags & RST:
                break
            if flags & SYN and not connected:
                connected, expected = True, (theirs + 1) % (1 << 32)
                seq = (seq + 1) % (1 << 32)
                self.tcp(port, seq, expected, ACK)
                self.tcp(port, seq, expected, ACK | PSH, request)
                seq = (seq + len(request)) % (1 << 32)
            elif data and theirs == expected:
                expected = (expected + len(data)) % (1 << 32)
                answer += data
                self.tcp(port, seq, expected, ACK)
            if flags & 0x01:
                break
        return {"connected": connected, "answer": answer.decode(errors="replace")}

    def frames_and_ticks(self, until):
        """Frames as they come, and nothing now and again."""
        yield None
        while time.monotonic() < until:
            yield from self.frames(min(until, time.monotonic() + 0.05))
            yield None


def ended():
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main():
    parser = argparse.ArgumentParser()
    for flag in ("interface", "claim", "target", "node", "node-mac", "source-mac", "announce-mac", "path"):
        parser.add_argument("--" + flag, required=True)
    parser.add_argument("--silent", action="store_true", help="announce nothing but when asked")
    parser.add_argument("--until-eof", action="store_true", help="go on until standard input ends")
    args = parser.parse_args()
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next(line.split()[1] for line in status if line.startswith("CapEff"))
    neighbour = Neighbour(args)
    tries = []
    # One answer is enough, and each try is a request of its own.
    while len(tries) < 3 and not any(it["answer"] for it in tries) or args.until_eof and not ended():
        tries.append(neighbour.ask(3.0))
    print(json.dumps({"capabilities": int(effective, 16), "tries": tries}))


main()
