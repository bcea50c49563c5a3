"""Redirection of a lab's pod, as the node agent installs it."""

from __future__ import annotations

import subprocess

from ambient.engine.netns import in_netns
from tests.lab import Host

RULES = """
table inet mesh {
  chain pre { type filter hook prerouting priority mangle; policy accept;
    meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111 accept
    iifname "lo" accept
    ip saddr 169.254.7.127 accept
    meta l4proto tcp tcp dport != 15008 fib daddr type local tproxy to :15006 accept
  }
  chain out_route { type route hook output priority mangle; policy accept;
    ct mark & 0xfff == 0x111 meta mark set ct mark
  }
  chain out { type nat hook output priority -100; policy accept;
    meta mark & 0xfff == { 0x539, 0x111 } accept
    oifname "lo" accept
    tcp flags & (fin|syn|rst|ack) == syn redirect to :15001
  }
}
"""
DRAIN = """
flush chain inet mesh out
flush chain inet mesh pre
add rule inet mesh pre meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111 accept
"""


def capture(pod: Host) -> None:
    run(pod, "nft", "-f", "-", text=RULES)
    for family in ("-4", "-6"):
        run(pod, "ip", family, "rule", "add", "fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100")
        everything = "0.0.0.0/0" if family == "-4" else "::/0"
        run(pod, "ip", family, "route", "add", "local", everything, "dev", "lo", "table", "100")


def drain_capture(pod: Host) -> None:
    run(pod, "nft", "-f", "-", text=DRAIN)


def release(pod: Host) -> None:
    run(pod, "nft", "delete", "table", "inet", "mesh")


def run(pod: Host, *args: str, text: str = "") -> None:
    with in_netns(pod.netns):
        subprocess.run(args, input=text, text=True, check=True, capture_output=True)
