#!/bin/sh
# PID 1 of a test host: keeps sshd running; the shell's wait reaps every orphan meanwhile.
while :; do
    /usr/sbin/sshd -D -E /var/log/sshd.log
    sleep 1
done
