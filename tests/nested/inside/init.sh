#!/bin/sh
# The first process of the nested guest: KVM on, the job run, its status told on the second serial line, power off.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
for module in /modules/*; do
    insmod "$module" || echo "init: $module could not be loaded"
done
. /etc/environment
cd /iobus
sh /job </dev/null
echo "{\"exit\": $?}" >/dev/ttyS1
poweroff -f
