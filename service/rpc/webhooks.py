"""The RPCs of WebhookService: read the request, call the store, respond."""

from appointments.v1 import webhook_service_pb2 as rpc

from service.errors import InvalidFields
from service.messages import check, organization_of
from service.rpc import page_tokens
from service.rpc import webhook_messages as messages
from service.rpc.handler import Call
from service.webhooks.addresses import AddressRules
from service.webhooks.store import WebhookStore

DEFAULT_PAGE_SIZE = 100
# Higher than the number of any delivery.
AFTER_ALL = 2**63 - 1


class WebhookServicer:
    def __init__(self, store: WebhookStore, addresses: AddressRules) -> None:
        self._store = store
        self._addresses = addresses

    async def CreateWebhook(
        self, request: rpc.CreateWebhookRequest, call: Call
    ) -> rpc.CreateWebhookResponse:
        organization_id = call.organization_id = organization_of(request.webhook)
        content = messages.content(request, self._addresses)
        after = request.after_revision if request.HasField("after_revision") else None
        created, secret, call.organization_revision = await self._store.create(
            organization_id, content, after=after
        )
        return rpc.CreateWebhookResponse(webhook=messages.webhook(created, secret=secret))

    async def GetWebhook(
        self, request: rpc.GetWebhookRequest, call: Call
    ) -> rpc.GetWebhookResponse:
        organization_id = call.organization_id = organization_of(request)
        check(request)
        found, call.organization_revision = await self._store.get(organization_id, request.id)
        return rpc.GetWebhookResponse(webhook=messages.webhook(found))

    async def ListWebhooks(
        self, request: rpc.ListWebhooksRequest, call: Call
    ) -> rpc.ListWebhooksResponse:
        organization_id = call.organization_id = organization_of(request)
        check(request)
        found, call.organization_revision = await self._store.list(organization_id)
        return rpc.ListWebhooksResponse(webhooks=map(messages.webhook, found))

    async def UpdateWebhook(
        self, request: rpc.UpdateWebhookRequest, call: Call
    ) -> rpc.UpdateWebhookResponse:
        organization_id = call.organization_id = organization_of(request.webhook)
        content = messages.content(request, self._addresses)
        updated, call.organization_revision = await self._store.update(
            organization_id, request.id, content
        )
        return rpc.UpdateWebhookResponse(webhook=messages.webhook(updated))

    async def DeleteWebhook(
        self, request: rpc.DeleteWebhookRequest, call: Call
    ) -> rpc.DeleteWebhookResponse:
        organization_id = call.organization_id = organization_of(request)
        check(request)
        call.organization_revision = await self._store.delete(organization_id, request.id)
        return rpc.DeleteWebhookResponse()

    async def RotateWebhookSecret(
        self, request: rpc.RotateWebhookSecretRequest, call: Call
    ) -> rpc.RotateWebhookSecretResponse:
        organization_id = call.organization_id = organization_of(request)
        check(request)
        rotated, secret, call.organization_revision = await self._store.rotate(
            organization_id, request.id
        )
        return rpc.RotateWebhookSecretResponse(webhook=messages.webhook(rotated, secret=secret))

    async def ReplayWebhook(
        self, request: rpc.ReplayWebhookRequest, call: Call
    ) -> rpc.ReplayWebhookResponse:
        organization_id = call.organization_id = organization_of(request)
        check(request)
        if not request.HasField("after_revision"):
            raise InvalidFields([("after_revision", "is required")])
        replayed, call.organization_revision = await self._store.replay(
            organization_id, request.id, after=request.after_revision
        )
        return rpc.ReplayWebhookResponse(webhook=messages.webhook(replayed))

    async def ListWebhookDeliveries(
        self, request: rpc.ListWebhookDeliveriesRequest, call: Call
    ) -> rpc.ListWebhookDeliveriesResponse:
        organization_id = call.organization_id = organization_of(request)
        check(request)
        before = AFTER_ALL
        if request.page_token:
            [before] = page_tokens.decode(request, request.page_token, (page_tokens.revision,))
        limit = request.page_size or DEFAULT_PAGE_SIZE
        found, call.organization_revision = await self._store.deliveries(
            organization_id, request.id, before=before, limit=limit + 1
        )
        response = rpc.ListWebhookDeliveriesResponse(
            deliveries=map(messages.delivery, found[:limit])
        )
        if len(found) > limit:
            response.next_page_token = page_tokens.encode(request, [found[limit - 1].number])
        return response
