#!/bin/sh
# Guard an initialisation in CI: fail the job if its gradient explodes, warn if it vanishes.
#
#     sh examples/ci_check.sh [ARGUMENTS OF gradscope analyze]
#
# Exit codes of gradscope: 0 fine, 1 a verdict matched --fail-on, 2 it could not analyse what it was
# given. Only 1 is a finding; anything else above it means that nothing was checked.
set -u

[ $# -gt 0 ] || set -- --cell lstm --hidden 32 --forget-bias 3

gradscope analyze "$@" --quiet --fail-on exploding --fail-on undecided
code=$?
case $code in
    0) echo "gradient check passed" ;;
    1) echo "gradient check FAILED" >&2 ;;
    *) echo "gradient check could not run (exit $code)" >&2 ;;
esac
exit $code
