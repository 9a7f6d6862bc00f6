"""The systems that are compared, a file each. To add one: write its class here, and name it in `ALL`.

A system's class says how it is started and stopped, which processes it consists of, and what drives it.
"""

from .etcd import Etcd
from .mydatastore import MyDataStore, MyDataStoreOs
from .redis import Redis, RedisSynced

ALL = [MyDataStore, MyDataStoreOs, Redis, RedisSynced, Etcd]
