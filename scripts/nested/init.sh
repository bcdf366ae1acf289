#!/bin/busybox sh
# The first program of the nested KVM host. Builds a copy-on-write view of the outer machine's file system, makes it the
# root, and starts the program that runs commands there.
# Placed next to it: /modules (kernel modules, and in /modules/order the order to load them) and /nested (agent, settings).
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /host /upper /root
/bin/busybox --install -s /bin

fail() {
  echo "nested host: $*"
  poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
  insmod "/modules/$module.ko" || fail "cannot load the module $module"
done </modules/order
. /nested/settings # NODE=…

# loose: files are read once and then cached. The outer machine's files must not be expected to change meanwhile.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host || fail 'cannot mount the file system'
mount -t tmpfs -o size=60% upper /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/data,workdir=/upper/work root /root || fail 'cannot mount the overlay'

for directory in dev proc sys; do
  mkdir -p /root/$directory
  mount --move /$directory /root/$directory
done
mkdir -p /root/dev/pts /root/dev/shm /root/run /root/tmp
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
mount -t tmpfs -o mode=755 run /root/run
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
ln -sf /proc/self/fd /root/dev/fd
ln -sf fd/0 /root/dev/stdin
ln -sf fd/1 /root/dev/stdout
ln -sf fd/2 /root/dev/stderr
hostname nested
ip link set lo up

# Files of this RAM disk that are needed later; switch_root deletes it.
cp -r /nested /bin/busybox /root/run/
mkdir /root/run/nested/fifos
for port in /root/sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = vmexit.agent ] && device=/dev/${port##*/}
done
[ -n "$device" ] || fail 'no port to the outer machine'
# A new root, not a chroot: in a chroot no user namespace could be made.
exec switch_root /root /run/busybox sh -c '
  export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  cd /
  # As many descriptors as elsewhere: the kernel by itself allows 4,096.
  ulimit -Hn 524288
  perl /run/nested/hold-kvm.pl || echo "nested host: KVM is not held"
  "$1" /run/nested/agent.js "$2" /run/nested/fifos
  echo "nested host: the command runner ended with status $?"
  /run/busybox poweroff -f
' init "$NODE" "$device"
