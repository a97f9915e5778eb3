#!/usr/bin/env bash
# A real S3 server on the loopback address: Ceph with one monitor, one storage daemon and one gateway.
#
#   ceph.sh DIR PORT MONITOR_PORT [memstore|bluestore]
#
# A first call makes the cluster in DIR; a later one with the same DIR starts the daemons that are not running, so that
# a test may kill them. With memstore all data is in memory and lost with the daemon; with bluestore it lies in DIR.
# The key is testkey, its secret testsecret. Everything runs as the calling user. To stop: kill $(cat DIR/run/*.pid).
set -euo pipefail
DIR=${1:?} PORT=${2:?} MONITOR=${3:?} STORE=${4:-memstore}
CONF=$DIR/ceph.conf

configure() {
    mkdir -p "$DIR"/{mon,osd,rgw,log,run}
    FSID=$(</proc/sys/kernel/random/uuid)
    cat >"$CONF" <<END
[global]
fsid = $FSID
mon host = [v2:127.0.0.1:$MONITOR]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
run dir = $DIR/run
pid file = $DIR/run/\$name.pid
log file = $DIR/log/\$name.log
crash dir = $DIR/log
# The path of a socket has a length limit, and nothing here asks for one.
admin socket =
# Whoever reaches the loopback address may do everything: keys are checked by the gateway only.
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = false
ms mon client mode = crc secure
# One copy of everything, and as few placement groups as there can be.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
# A disk that is nearly full is no reason not to test.
mon data avail warn = 1
mon data avail crit = 1
[mon.a]
mon data = $DIR/mon
[osd.0]
osd data = $DIR/osd
osd objectstore = $STORE
osd memory target = 1073741824
osd op num shards = 2
# Else a daemon that the machine holds up for 16 s, when memory is short, loses its lease and waits for it for ever.
osd heartbeat grace = 3600
memstore device bytes = 8589934592
bluestore block size = 21474836480
[client.rgw.a]
rgw data = $DIR/rgw
rgw frontends = beast endpoint=127.0.0.1:$PORT tcp_nodelay=1
rgw thread pool size = 32
rgw dynamic resharding = false
# What was deleted gives its memory back at once.
rgw gc obj min wait = 5
rgw gc processor period = 5
rgw enable usage log = false
END
    monmaptool --create --clobber --fsid "$FSID" --addv a "[v2:127.0.0.1:$MONITOR]" "$DIR/monmap" >/dev/null
    ceph-mon -c "$CONF" --mkfs -i a --monmap "$DIR/monmap"
}

running() { # a daemon by the name of its pid file
    local pid
    pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) && [[ -n $pid ]] && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$CONF"
}

make_storage() {
    local uuid
    uuid=$(</proc/sys/kernel/random/uuid)
    timeout 60 ceph -c "$CONF" osd new "$uuid" >/dev/null
    ceph-osd -c "$CONF" -i 0 --mkfs --osd-uuid "$uuid" >>"$DIR/log/mkfs.log" 2>&1
    touch "$DIR/storage-made"
}

make_user() {
    timeout 60 radosgw-admin -c "$CONF" user create --uid=test --display-name=test \
        --access-key=testkey --secret=testsecret >"$DIR/log/user.log" 2>&1
    touch "$DIR/user-made"
}

[[ -e $CONF ]] || configure
running mon.a || ceph-mon -c "$CONF" -i a
[[ -e $DIR/storage-made ]] || make_storage
running osd.0 || ceph-osd -c "$CONF" -i 0 >>"$DIR/log/osd.out" 2>&1
[[ -e $DIR/user-made ]] || make_user
PID=$DIR/run/client.rgw.a.pid
if ! running client.rgw.a; then
    rm -f "$PID"
    radosgw -c "$CONF" -n client.rgw.a >>"$DIR/log/rgw.out" 2>&1
fi
for _ in {1..600}; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; then
        echo "ready http://127.0.0.1:$PORT"
        exit 0
    fi
    [[ ! -e $PID ]] || running client.rgw.a || break # it ended by itself
    sleep 0.1
done
echo "the gateway does not listen on port $PORT; its log is in $DIR/log" >&2
exit 1
