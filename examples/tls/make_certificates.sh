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

directory=${1:?usage: $0 DIRECTORY [--host SAN,...] [--days N] [NAME=SAN,... ...]}
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

new_key() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "$@" 2>/dev/null; }

if [[ ! -e ca.key ]]; then
    new_key -x509 -days "$days" -subj "/CN=kvtier test CA" -keyout ca.key -out ca.pem
fi

# name, subject alternative names, what it is used for
certificate() {
    new_key -subj "/CN=$1" -keyout "$1.key" -out "$1.request"
    printf 'subjectAltName=%s\nextendedKeyUsage=%s\n' "$2" "$3" >"$1.extensions"
    openssl x509 -req -days "$days" -in "$1.request" -CA ca.pem -CAkey ca.key -CAcreateserial \
        -extfile "$1.extensions" -out "$1.pem" 2>/dev/null
    rm "$1.request" "$1.extensions"
}

if [[ -n $host || ! -e agent.pem ]]; then
    certificate agent "${host:-IP:127.0.0.1,DNS:localhost}" serverAuth
fi
for caller in ${callers[@]+"${callers[@]}"}; do
    certificate "${caller%%=*}" "${caller#*=}" clientAuth
done
chmod 644 ./*.pem
echo "certificates are in $PWD"
