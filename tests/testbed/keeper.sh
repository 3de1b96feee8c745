# Holds one test bed together: PID 1 of a pid namespace, owner of the mounts and of the bridge that all hosts hang on.
# When its stdin ends (the test process closed it, or died however it died) it exits, and the kernel takes every
# process, mount and interface of the bed with it.
# $1: the bed's directory; $2: the machine's end of the uplink; $3: the machine's address with prefix length.
set -eu
read -r pid _ < /proc/self/stat
mount --make-rprivate /
ip link set lo up
ip link add br0 type bridge stp_state 0 forward_delay 0
ip link set br0 up
echo "$pid"
while read -r _; do :; done
