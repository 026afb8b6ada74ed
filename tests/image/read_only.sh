#!/usr/bin/env bash
# read_only.sh COMMAND...: runs it as a user without a name, on a root file system that cannot be written, with an empty
# /tmp: as a pod does. To be started by `unshare --mount`, as root.
set -euo pipefail
mount --make-rprivate /
mount --options remount,bind,ro /
mount --types tmpfs --options mode=1777 tmpfs /tmp
if touch /written 2>/dev/null; then
	rm /written
	echo "the root file system can still be written" >&2
	exit 1
fi
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set -all "$@"
