# Boots one host: runs as PID 1 of fresh mount, pid, net, uts and ipc namespaces and becomes the host's init.
# $1: root of the host (a mounted overlay); $2: directory with the accounts' homes; $3: host name; the rest: pairs
# "source:target" to bind read-only. Prints its pid as the machine sees it when all is mounted.
set -eu
umask 022
root=$1 homes=$2 name=$3
shift 3
read -r pid _ < /proc/self/stat
ulimit -c 0
ulimit -Sn 1024
echo "$name" > /proc/sys/kernel/hostname
cd "$root"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o nosuid,mode=755,size=1m dev dev
mkdir dev/pts dev/shm
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
ln -s pts/ptmx dev/ptmx
mount -t devpts -o newinstance,nosuid,noexec,ptmxmode=666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o nosuid,nodev,mode=1777 shm dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755,size=64m run run
mkdir -p run/sshd run/lock
chmod 1777 run/lock
mount -t tmpfs -o nosuid,nodev,mode=1777,size=4g tmp tmp
for user in "$homes"/*; do
    mount --bind "$user" "home/${user##*/}"
done
for pair in "$@"; do
    mount --bind "${pair%%:*}" ".${pair##*:}"
    mount -o remount,bind,ro ".${pair##*:}"
done
mkdir -p run/old
pivot_root . run/old
cd /
umount -l run/old
rmdir run/old
echo "$pid"
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /bin/sh /usr/sbin/init \
    < /dev/null > /dev/null 2>&1
