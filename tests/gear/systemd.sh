#!/bin/sh
# systemd as PID 1 of its own namespaces, on a view of this machine that forgets what is written to it.
#
#   unshare --pid --fork --kill-child --mount --uts --ipc --cgroup sh systemd.sh FOLDER [PATH]...
#
# The PATHs are seen in it where they lie, whatever lies above them. Called by tests/gear/systemd.py.
set -eu
folder=$1
shift
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/written" "$folder/work" "$folder/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/written,workdir=$folder/work" "$folder/root"
cd "$folder/root"
mount -t proc proc proc
mount -o bind,ro proc/sys proc/sys # or systemd-sysctl would set up the kernel that all of us share
mount --rbind /dev dev
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for place in run tmp var/tmp; do mount -t tmpfs tmpfs $place; done
chmod 1777 tmp var/tmp
mkdir run/lock
for path in "$@"; do
  mkdir -p ".$path"
  mount --bind "$path" ".$path"
done
mkdir -p host
pivot_root . host
umount -l host
export container=test
exec /usr/lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=no
