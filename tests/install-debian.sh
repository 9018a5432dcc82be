#!/bin/sh
# The Debian parts that tests run for real: conmon writes CRI logs, nginx is a TLS proxy, ip makes network namespaces, nft rules
# between them, dnsmasq answers names there, strace shows what a process really opens, systemd-journal-remote writes journal files.
# Never fails: where they cannot be had, it says why, and the tests that need them skip.
set -u
PATH=$PATH:/usr/sbin:/sbin
missing=
command -v conmon >/dev/null || missing="$missing conmon"
command -v nginx >/dev/null || missing="$missing nginx-light"
command -v strace >/dev/null || missing="$missing strace"
command -v mkfs.ext4 >/dev/null || missing="$missing e2fsprogs"
command -v ip >/dev/null || missing="$missing iproute2"
command -v nft >/dev/null || missing="$missing nftables"
command -v dnsmasq >/dev/null || missing="$missing dnsmasq-base"
test -x /lib/systemd/systemd-journal-remote || missing="$missing systemd-journal-remote"
command -v faketime >/dev/null || missing="$missing faketime"
test -n "$missing" || exit 0

not_installed() {
    echo "not installed:$missing ($1); tests that need them skip"
    exit 0
}
command -v apt-get >/dev/null || not_installed "no apt-get here"
test "$(id -u)" = 0 || not_installed "not root; as root: apt-get install$missing"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
policy=/usr/sbin/policy-rc.d # asked before a package starts its service: a test machine's port 80 is not ours to take
if ! test -e $policy; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -rf "$work" $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # one word per package
if ! { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends $missing; } >"$work/log" 2>&1; then
    tail -n 5 "$work/log"
    not_installed "apt-get failed, above"
fi
