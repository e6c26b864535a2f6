"""What services there are, by the agent that answers for them: all that the assistant knows of them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

__all__ = ["AGENTS", "Service", "describe", "schema"]


class Service(NamedTuple):
    """One service.

    Attributes:
        description: in a few words, for the model.
        methods: what can be asked of it.
    """

    name: str
    description: str
    methods: tuple[str, ...]


#: Each a deployment of its own. Services and methods as the dialogues' authors named them.
AGENTS: Final[dict[str, tuple[Service, ...]]] = {
    "travel": (
        Service("Buses_1", "Intercity buses and their tickets", ("FindBus", "BuyBusTicket")),
        Service("Flights_3", "Flights, one way or return", ("SearchOnewayFlight", "SearchRoundtripFlights")),
        Service("Hotels_1", "Hotels and rooms in them", ("SearchHotel", "ReserveHotel")),
        Service("Hotels_4", "Hotels and rooms in them", ("SearchHotel", "ReserveHotel")),
        Service("RentalCars_1", "Cars for rent", ("GetCarsAvailable", "ReserveCar")),
        Service("RideSharing_1", "A ride within the city", ("GetRide",)),
        Service("Travel_1", "What there is to see in a city", ("FindAttractions",)),
    ),
    "leisure": (
        Service("Events_1", "Concerts and games, and tickets for them", ("FindEvents", "BuyEventTickets")),
        Service("Media_2", "Films to rent at home", ("FindMovies", "RentMovie")),
        Service("Movies_2", "Films in the cinemas", ("FindMovies",)),
        Service("Music_1", "Songs to look up and play", ("LookupSong", "PlaySong")),
        Service("Restaurants_2", "Restaurants and tables in them", ("FindRestaurants", "ReserveRestaurant")),
    ),
    "home": (
        Service("Alarm_1", "The user's alarms", ("GetAlarms", "AddAlarm")),
        Service("Banks_2", "The user's accounts", ("CheckBalance", "TransferMoney")),
        Service("Homes_1", "Apartments and visits to them", ("FindApartment", "ScheduleVisit")),
        Service("Services_4", "Therapists and their hours", ("FindProvider", "BookAppointment")),
        Service("Weather_1", "The weather", ("GetWeather",)),
    ),
}


def describe(agent: str) -> str:
    """What *agent* is for."""
    return "; ".join(f"{service.name}: {service.description}" for service in AGENTS[agent])


def schema(agent: str) -> dict[str, Any]:
    """The JSON Schema of what *agent* is asked."""
    return {
        "type": "object",
        "properties": {
            "service": {"type": "string", "enum": [service.name for service in AGENTS[agent]]},
            "method": {
                "type": "string",
                "enum": sorted({name for service in AGENTS[agent] for name in service.methods}),
            },
            "parameters": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["service", "method", "parameters"],
        "additionalProperties": False,
    }
