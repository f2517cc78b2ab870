#!/bin/sh
# Chromium and its driver for the browser tests: found, or installed from Debian's packages where this user may do that.
# Where neither works, the tests say that they are skipped and why; this script never fails.
found() { command -v chromium && command -v chromedriver; }
found >/dev/null && exit 0
told="the browser tests will be skipped; as root: apt-get install chromium chromium-driver"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no Chromium with chromedriver here, and no right to install them: $told" >&2
    exit 0
fi
echo "installing chromium and chromium-driver for the browser tests" >&2
export DEBIAN_FRONTEND=noninteractive
APT="timeout 300 apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20"
{ $APT update && $APT install -y --no-install-recommends chromium chromium-driver; } >/dev/null
found >/dev/null || echo "apt-get did not install them (see above): $told" >&2
