#!/usr/bin/env bash
# Makes test certificates with openssl: a CA, one for an agent, and one for each caller that is
# named as NAME=SAN[,SAN...], where a SAN is DNS:... or URI:....
#
#   make_certificates.sh DIRECTORY [--host SAN[,SAN...]] [--days N] [NAME=SAN[,SAN...] ...]
#
# --host says where the agent is reached (IP:127.0.0.1,DNS:localhost). What is in the directory
# already is kept: the CA, and the agent's certificate unless --host is given. For tests: the CA's
# key stays there too.
set -euo pipefail

if (($# == 0)); then
    echo "usage: $0 DIRECTORY [--host SAN,...] [--days N] [NAME=SAN,... ...]" >&2
    exit 2
fi
directory=$1
shift
host=
days=30
callers=()
while (($#)); do
    case $1 in
        --host) host=${2:?--host needs names}; shift 2 ;;
        --days) days=${2:?--days needs a number}; shift 2 ;;
        ?*=?*) callers+=("$1"); shift ;;
        *) echo "$0: $1: write NAME=DNS:... or NAME=URI:..." >&2; exit 2 ;;
    esac
done

umask 077
mkdir -p "$directory"
cd "$directory"

made=$(mktemp -d "$PWD/.made.XXXXXX")
trap 'rm -rf "$made"' EXIT

# What openssl says is of use where it fails.
quietly() {
    if ! "$@" 2>"$made/said"; then
        cat "$made/said" >&2
        exit 1
    fi
}
new_key() {
    quietly openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "$@"
}

if [[ ! -e ca.key ]]; then
    new_key -x509 -days "$days" -subj "/CN=kvtier test CA" -keyout "$made/ca.key" -out "$made/ca.pem"
    mv "$made/ca.key" "$made/ca.pem" .
fi

# name, subject alternative names, what it is used for
certificate() {
    new_key -subj "/CN=$1" -keyout "$made/$1.key" -out "$made/request"
    printf 'subjectAltName=%s\nextendedKeyUsage=%s\n' "$2" "$3" >"$made/extensions"
    quietly openssl x509 -req -days "$days" -in "$made/request" -CA ca.pem -CAkey ca.key \
        -CAcreateserial -extfile "$made/extensions" -out "$made/$1.pem"
    chmod 644 "$made/$1.pem"
    mv "$made/$1.key" "$made/$1.pem" .
}

if [[ -n $host || ! -e agent.pem ]]; then
    certificate agent "${host:-IP:127.0.0.1,DNS:localhost}" serverAuth
fi
for caller in ${callers[@]+"${callers[@]}"}; do
    certificate "${caller%%=*}" "${caller#*=}" clientAuth
done
chmod 644 ca.pem
echo "certificates are in $PWD"
