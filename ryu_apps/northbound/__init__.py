"""The northbound REST API on Ryu's WSGI server; the contract is docs/northbound_api.md.

A resource group is one module with its handlers, its `ROUTES` and its `SCHEMAS`; `registry.py` lists the
modules. Everything else follows from the routes: dispatch, the access rules and the OpenAPI document.
"""

from ryu_apps.northbound.controller import NorthboundController
from ryu_apps.northbound.routes import Api

__all__ = ["Api", "NorthboundController"]
