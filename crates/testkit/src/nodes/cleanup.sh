#!/usr/bin/env bash
# Removes the remains of a test cluster or of one of its nodes by name: network namespaces, cgroups
# in every hierarchy, and the cluster's directory. Mounts and processes end with the node's own
# namespaces.
#   cleanup.sh NAME            now
#   cleanup.sh --after NAME    once standard input ends, which is the end of the test process
#   cleanup.sh --sweep         all clusters whose test process is gone
set -euo pipefail
shopt -s nullglob
temporary=${TMPDIR:-/tmp}

# remove NAME: removes everything named NAME or NAME-...
remove() {
	local name=$1 namespace cgroup
	for namespace in /run/netns/"$name" /run/netns/"$name"-*; do
		ip netns del "${namespace##*/}" 2>/dev/null || true
	done
	# A cgroup cannot be removed until the kernel has released the last process in it.
	for _ in $(seq 100); do
		local left=0
		# Hierarchies of version 1 are folders of their own, version 2 is the folder itself.
		for cgroup in /sys/fs/cgroup/{,*/}"$name"{,-*}; do
			[ -d "$cgroup" ] || continue
			find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
		done
		[ $left = 1 ] || break
		sleep 0.1
	done
	for folder in "$temporary/$name" "$temporary/$name"-*; do
		for _ in $(seq 20); do
			rm -rf "$folder" 2>/dev/null && break
			sleep 0.1
		done
	done
}

# owners: prints each process ID in the names of the remains once.
owners() {
	for path in /run/netns/rolegate-nodes-* /sys/fs/cgroup/{,*/}rolegate-nodes-* "$temporary"/rolegate-nodes-*; do
		path=${path##*/rolegate-nodes-}
		echo "${path%%-*}"
	done | sort -u
}

case ${1:-} in
--after)
	trap '' INT TERM HUP
	cat >/dev/null
	remove "$2"
	;;
--sweep)
	for owner in $(owners); do
		[ -e "/proc/$owner" ] || remove "rolegate-nodes-$owner"
	done
	;;
rolegate-nodes-*) remove "$1" ;;
*) echo "cleanup.sh: use --after NAME, --sweep or the name of a cluster" >&2 && exit 64 ;;
esac
