#!/usr/bin/env bash
# A node of a test cluster from power-on to its end. This script is process 1 of the node's
# namespaces.
#   node.sh NAME NODE ADDRESS FOLDER CLUSTER
# NAME is unique on the machine (its cgroups are called so), NODE is what Kubernetes calls it,
# FOLDER is its disk, CLUSTER is the binary of tests/cluster.
set -euo pipefail
name=$1 node=$2 address=$3 folder=$4 cluster=$5
export NODE_NAME=$node HOST_IP=$address

hostname "$node"

# Mounts from here on do not propagate to the machine.
mount --make-rprivate /
# `ip netns` mounts this directory onto itself at each call.
while mountpoint -q /run/netns; do umount --recursive /run/netns; done
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock
touch /run/xtables.lock
# An overlay: the machine's files below, the node's own files above, on the node's disk.
for path in /etc /var; do
	mkdir -p "$folder/disk$path" "$folder/work$path"
	mount -t overlay overlay \
		-o "lowerdir=$path,upperdir=$folder/disk$path,workdir=$folder/work$path" "$path"
done
mount --make-rshared /

# The kubelet writes these sysctls, which apply to the whole kernel. It leaves them unchanged if
# they already have its values.
for parameter in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
	kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	shown=/run/sys/${parameter%=*}
	mkdir -p "${shown%/*}"
	echo "${parameter#*=}" >"$shown"
	mount --bind "$shown" "/proc/sys/${parameter%=*}"
done

# The identifiers of a machine and a boot are the kernel's as well.
uuid=/proc/sys/kernel/random/uuid
cat "$uuid" >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
if [ ! -e "$folder/machine-id" ]; then tr -d - <"$uuid" >"$folder/machine-id"; fi
cp --remove-destination "$folder/machine-id" /etc/machine-id

# The kubelet expects its root in each hierarchy, and version 1 of cpusets are empty at first.
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
	if [ ! -e "$hierarchy/cgroup.procs" ] || [ -L "$hierarchy" ]; then continue; fi
	# Version 2 has one hierarchy, which contains only groups.
	if [ "$hierarchy" != /sys/fs/cgroup ] && [ -e /sys/fs/cgroup/cgroup.procs ]; then continue; fi
	mkdir -p "$hierarchy/$name"
	for set in cpus mems; do
		if [ -e "$hierarchy/cpuset.$set" ]; then
			cat "$hierarchy/cpuset.$set" >"$hierarchy/$name/cpuset.$set"
		fi
	done
done

cp --remove-destination "$folder/resolv.conf" /etc/resolv.conf
rm -rf /etc/cni/net.d
mkdir -p /etc/cni/net.d /etc/kubernetes/manifests /var/lib/kubelet /var/log/pods
cp "$folder/network.conflist" /etc/cni/net.d/

# service NAME COMMAND...: runs a service, and starts it again when it ends, as systemd does.
service() {
	while :; do
		"${@:2}" >>"$folder/$1.log" 2>&1 || true
		sleep 1
	done
}

service containerd containerd --config "$folder/containerd.toml" &
ctr() { command ctr --address /run/containerd/containerd.sock --namespace k8s.io "$@"; }
until ctr version >/dev/null 2>&1; do sleep 0.05; done
known=$(ctr images list --quiet)
while read -r image archive; do
	grep -qxF "$image" <<<"$known" || ctr images import "$archive" >/dev/null
done <"$folder/images"

if [ -s "$folder/before-kubelet" ]; then
	bash -euo pipefail "$folder/before-kubelet"
fi

kubectl() { "$cluster" kubectl --kubeconfig "$folder/kubelet.kubeconfig" "$@"; }
until kubectl get --raw /readyz >/dev/null 2>&1; do sleep 0.2; done

# No --conntrack-*: the limit applies to the whole kernel.
service kube-proxy "$cluster" kube-proxy --kubeconfig "$folder/proxy.kubeconfig" --proxy-mode nftables \
	--hostname-override "$node" --conntrack-max-per-core 0 --conntrack-min 0 \
	--healthz-bind-address 127.0.0.1:10256 --metrics-bind-address 127.0.0.1:10249 &
service kubelet "$cluster" kubelet --config "$folder/kubelet.json" --kubeconfig "$folder/kubelet.kubeconfig" \
	--hostname-override "$node" --node-ip "$address" --cert-dir "$folder/certificates" &

# Process 1 inherits the shims of containers, and has to reap them.
while :; do
	wait
	sleep 1
done
