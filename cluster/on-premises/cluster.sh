#!/usr/bin/env bash
# A Ray cluster of hosts that are reached by ssh.
#
#   cluster.sh install HOSTS   install this checkout into ~/kdcl on each host (again after a new release)
#   cluster.sh up HOSTS        start Ray on all where it does not run, with this user's token (made if there is none)
#   cluster.sh status HOSTS    show what the cluster has
#   cluster.sh down HOSTS      end Ray on all of them
#
# HOSTS is a file like hosts.txt beside this script.
set -euo pipefail

readonly PORT=6379 DASHBOARD=8265
# On the hosts: programs of ~/kdcl come first, and every process asks for the token.
# shellcheck disable=SC2016 # expanded there, not here
readonly THERE='export PATH="$HOME/kdcl/bin:$PATH" RAY_AUTH_MODE=token;'

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

on() { # on ADDRESS COMMAND: run a command line on a host; stdin is passed on
    # shellcheck disable=SC2029 # the command is put together here on purpose
    ssh -o BatchMode=yes "$1" "$THERE $2"
}

install() {
    local address
    for address in "${ADDRESSES[@]}"; do
        echo "installing on $address"
        tar --create --gzip --directory "$(dirname "$0")/../.." \
            kdcl_dist release setup.cfg pyproject.toml constraints.txt LICENSE |
            on "$address" 'set -e; mkdir -p ~/kdcl/src; tar --extract --gzip --directory ~/kdcl/src
                python3 -m venv ~/kdcl; cd ~/kdcl/src
                pip install --quiet --constraint constraints.txt .'
    done
}

up() {
    local token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} head=${ADDRESSES[0]} i
    [[ -s $token ]] || (umask 077 && ray get-auth-token --generate > /dev/null)
    for i in "${!ADDRESSES[@]}"; do
        # By stdin: a command line can be read by every user of the host.
        on "${ADDRESSES[i]}" 'umask 077; mkdir -p ~/.ray; cat > ~/.ray/auth_token' < "$token"
        on "${ADDRESSES[i]}" "$(start "$i" "$head")" < /dev/null
    done
    echo "up; submit jobs to http://$head:$DASHBOARD"
}

start() { # start INDEX HEAD: the command that starts Ray on the host with an index in the list
    local address=${ADDRESSES[$1]} label=${LABELS[$1]}
    # With the address, since a host whose name resolves to 127.0.0.1 would take that for its own.
    local options=("--node-ip-address=$address" --disable-usage-stats)
    if [[ $1 == 0 ]]; then
        options+=(--head "--port=$PORT" "--dashboard-host=$address" "--dashboard-port=$DASHBOARD")
    else
        options+=("--address=$2:$PORT")
    fi
    if [[ $label == - ]]; then
        options+=(--num-cpus=0 --num-gpus=0)
    else
        options+=("--labels=ray.io/accelerator-type=$label")
    fi
    # A host where Ray runs stays as it is: a second start would count its cores and GPUs twice.
    echo "pgrep -u \$(id -u) -x raylet > /dev/null && echo 'Ray runs on $address' || ray start ${options[*]}"
}

down() {
    local i
    for ((i = ${#ADDRESSES[@]} - 1; i >= 0; i--)); do # the head last
        on "${ADDRESSES[i]}" 'ray stop' < /dev/null
    done
}

[[ $# == 2 && -r $2 ]] || usage
mapfile -t ADDRESSES < <(sed 's/#.*//' "$2" | awk 'NF { print $1 }')
mapfile -t LABELS < <(sed 's/#.*//' "$2" | awk 'NF { print (NF > 1 ? $2 : "-") }')
[[ ${#ADDRESSES[@]} -gt 0 ]] || { echo "cluster.sh: no host in $2" >&2 && exit 2; }
case $1 in
    install) install ;;
    up) up ;;
    status) on "${ADDRESSES[0]}" 'ray status' < /dev/null ;;
    down) down ;;
    *) usage ;;
esac
