from __future__ import annotations
import os, socket, threading, time, sys
import numpy as np, pytest, grpc
from kvtier import Client, BlockStatus
from kvtier.client.admin import AdminClient
from kvtier.client.extents import Extents
from kvtier.testing import AgentProcess
from kvtier.v1 import block_cache_pb2 as pb, block_pb2
from tests.faults.agents import *
from tests.faults.blocks import *
from tests.faults.raw_worker import RawWorker, keys_message
from tests.faults.waiting import wait_until
from kvtier.v1 import block_cache_pb2 as pb

SMALL=4096

def fill(ns, n, seq="s"):
    assert store(ns, seq, n)==n

def test_load_with_lease_ending_midway_leaks():
    with running_agent("256MiB", leases__max_share=1.0) as agent, AdminClient(agent.admin_address) as admin, Client(agent.address, timeout_seconds=5) as c:
        ns=c.namespace(spec_of("m",SMALL)); fill(ns,8000)
        hs=hashes_of("s",8000)
        ns.lookup([b"x"*32])
        wait_until_free(admin,3)
        with ns.load(hs, ttl_seconds=0.002) as l: print("count", l.count)
        c.close()
        wait_until_free(admin,3)

def test_detach_mid_load_leaks():
    with running_agent("256MiB", leases__max_share=1.0) as agent, AdminClient(agent.admin_address) as admin, Client(agent.address, timeout_seconds=5) as c:
        ns=c.namespace(spec_of("m",SMALL)); fill(ns,8000)
        hs=hashes_of("s",8000); c.close()
        for i in range(20):
            with RawWorker(agent) as w:
                t=w.open(ns.spec)
                f=w.start("LoadBlocks", pb.LoadBlocksRequest(keys=[keys_message(hs)], wait=2), t)
                time.sleep(0.008+0.0005*i)
                w.detach()
                try: f.result(); print(i,"ok")
                except grpc.RpcError as e: print(i,e.code())
        wait_until_free(admin,12)

def test_detach_mid_reserve():
    with running_agent("512MiB", leases__max_share=1.0) as agent, AdminClient(agent.admin_address) as admin:
        spec=spec_of("m",SMALL)
        import subprocess
        for i in range(5):
            with RawWorker(agent) as w:
                t=w.open(spec)
                f=w.start("ReserveBlocks", pb.ReserveBlocksRequest(keys=[keys_message(hashes_of(f"r{i}",8000))]), t)
                time.sleep(0.012)
                w.detach()
                try: f.result(); print(i,"ok")
                except grpc.RpcError as e: print(i,e.code())
        print(host_stats(admin).leased_bytes, host_stats(admin).quarantined_bytes)
        # all raw clients are of this process; quarantine stays

def test_release_during_commit_with_digest():
    import xxhash
    with running_agent("256MiB", leases__max_share=1.0) as agent, AdminClient(agent.admin_address) as admin:
        spec=spec_of("m",SMALL)
        with RawWorker(agent) as w:
            t=w.open(spec)
            for i in range(10):
                hs=hashes_of(f"q{i}",8000)
                a=w.call("ReserveBlocks", pb.ReserveBlocksRequest(keys=[keys_message(hs)]), t)
                f=w.start("CommitBlocks", pb.CommitBlocksRequest(reservation_id=a.reservation.lease_id), t)
                g=w.start("ReleaseLeases", pb.ReleaseLeasesRequest(lease_ids=[a.reservation.lease_id]), t)
                r=f.result(); g.result()
                ok=sum(s==1 for s in r.status); print(ok)
                # now another reservation: must not get slots of committed blocks
                l=w.call("LoadBlocks", pb.LoadBlocksRequest(keys=[keys_message(hs)], wait=2), t)
                mine={(l.slots.extent[k],l.slots.slot[k]) for k in range(8000) if l.status[k]==1}
                b=w.call("ReserveBlocks", pb.ReserveBlocksRequest(keys=[keys_message(hashes_of(f"z{i}",8000))]), t)
                other={(b.slots.extent[k],b.slots.slot[k]) for k in range(8000) if b.status[k]==1}
                assert not mine & other, len(mine&other)
                w.call("ReleaseLeases", pb.ReleaseLeasesRequest(lease_ids=[b.reservation.lease_id,l.lease.lease_id]), t)

def test_attach_cycles_one_process():
    with running_agent("64MiB") as agent:
        n0=descriptor_count(agent.pid)
        for i in range(50):
            with Client(agent.address) as c:
                store(c.namespace(spec_of("m",SMALL)), "s", 4)
        def few():
            print(descriptor_count(agent.pid)); return descriptor_count(agent.pid) < n0+10
        wait_until(few, 1, 0.3)

def test_late_extents_answer_leaks_fd():
    with running_agent("64MiB") as agent, Client(agent.address) as c:
        ns=c.namespace(spec_of("m",SMALL)); store(ns,"s",4)
        conn=c._connection; tok=conn.session(ns.spec,"",1)
        e=Extents(str(agent.directory/"attach.sock"), b"x"*16, 1.0)
        # own session needed
        tok=conn._service.call("OpenSession", pb.OpenSessionRequest(namespace=__import__("kvtier.client.connection",fromlist=["x"]).spec_message(ns.spec), attach_token=e.token),1.0).session_token
        n0=len(os.listdir("/proc/self/fd"))
        agent.pause()
        with pytest.raises(Exception):
            e.get(tok,[1],0.2)
        agent.resume()
        time.sleep(0.3)
        e.poll()
        n1=len(os.listdir("/proc/self/fd"))
        e.close()
        assert n1==n0,(n0,n1)

def test_releases_race():
    with running_agent("64MiB") as agent, Client(agent.address) as c:
        ns=c.namespace(spec_of("m",SMALL)); store(ns,"s",4)
        sys.setswitchinterval(1e-6)
        errs=[]
        def go():
            try:
                for _ in range(1500):
                    with ns.load(hashes_of("s",4)): pass
            except BaseException as e: errs.append(e)
        ts=[threading.Thread(target=go) for _ in range(4)]
        [t.start() for t in ts]; [t.join() for t in ts]
        sys.setswitchinterval(0.005)
        assert not errs, errs

def test_lost_release():
    with running_agent("64MiB", leases__default_seconds=0.5) as agent, AdminClient(agent.admin_address) as admin, Client(agent.address, timeout_seconds=0.3) as c:
        ns=c.namespace(spec_of("m",SMALL)); store(ns,"s",4)
        with ns.reserve(hashes_of("t",8)): pass
        agent.pause()
        with pytest.raises(Exception): ns.load(hashes_of("s",4))
        agent.resume()
        wait_until(lambda: c.is_connected, 5)
        def ok():
            with ns.load(hashes_of("s",1)): pass
            ns.reserve(hashes_of("s",1)).release()
            print(host_stats(admin).leased_bytes, host_stats(admin).quarantined_bytes)
            return host_stats(admin).quarantined_bytes==0 and host_stats(admin).leased_bytes<=4096*2
        wait_until(ok, 5, 0.3)

def test_lost_reservation():
    with running_agent("64MiB", leases__default_seconds=0.5) as agent, AdminClient(agent.admin_address) as admin, Client(agent.address, timeout_seconds=0.3) as c:
        ns=c.namespace(spec_of("m",SMALL)); store(ns,"s",4)
        agent.pause()
        with pytest.raises(Exception): ns.reserve(hashes_of("t",8))
        agent.resume()
        wait_until(lambda: c.is_connected, 5)
        def ok():
            ns.reserve(hashes_of("s",1)).release()
            print(host_stats(admin).leased_bytes, host_stats(admin).quarantined_bytes)
            return promised_bytes(admin)==0
        wait_until(ok, 5, 0.3)

def test_close_after_fork_ends_session():
    with running_agent("64MiB") as agent, AdminClient(agent.admin_address) as admin:
        c=Client(agent.address)
        ns=c.namespace(spec_of("m",SMALL)); store(ns,"s",4)
        pid=os.fork()
        if pid==0:
            time.sleep(5); os._exit(0)
        try:
            c.close()
            wait_until(lambda: not admin.list_sessions(), 1)
        finally:
            os.kill(pid,9); os.waitpid(pid,0)

def test_lookup_many_shards():
    with running_agent("64MiB") as agent, AdminClient(agent.admin_address) as admin, RawWorker(agent) as w:
        import dataclasses
        spec=dataclasses.replace(spec_of("m",SMALL), shards=65536)
        t=w.open(spec)
        f=w.start("LookupPrefix", pb.LookupPrefixRequest(keys=[keys_message(hashes_of("a",8192))], shards=range(65536), match=2), t, 60)
        time.sleep(0.2)
        t0=time.time(); 
        try: admin.get_stats()
        finally: print("stats took", time.time()-t0)
        f.cancel()
        assert time.time()-t0<0.5

def test_dead_holders_keep_fds():
    with running_agent("16MiB", leases__max_share=1.0) as agent, AdminClient(agent.admin_address) as admin:
        import subprocess
        code="""
import sys
from kvtier import Client
from tests.faults.blocks import *
with Client(sys.argv[1]) as c:
    ns=c.namespace(spec_of(sys.argv[2], int(sys.argv[3])))
    for i in range(12): store(ns, f"{sys.argv[2]}{i}", 2*MIB//int(sys.argv[3]))
"""
        counts=[]
        for i in range(12):
            subprocess.run([sys.executable,"-c",code,agent.address,["a","b"][i%2],str([16384,65536][i%2])],check=True)
            counts.append(descriptor_count(agent.pid))
        print(counts)
        assert counts[-1]<=counts[3]+4
